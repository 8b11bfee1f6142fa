"""The cost model of a target: from its data sheet, or from a calibration that was stored."""

from __future__ import annotations

from dwr_rewrite.cost import Model, Target, load_model
from dwr_rewrite.errors import DwrError
from dwr_rewrite.tuning.database import Database


def model_of(name: str, database: Database) -> Model:
    """The model of a target by its name.

    Where the target is a known one, that is the model of its data sheet, to which what was fitted
    belongs. Otherwise ``dwr-bench calibrate`` has to have run on it, here or where the database
    was filled; case does not count.

    Raises:
        DwrError: it is neither; the message lists both kinds.
    """
    try:
        return load_model(name)
    except DwrError as error:
        calibrated = {device.name: device for device in database.calibrated()}
        for device in calibrated.values():
            rates = database.rates(device)
            if device.name.casefold() == name.casefold() and rates is not None:
                return Model(Target.measured(device.name, rates))
        measured = ", ".join(sorted(calibrated)) or "none"
        raise DwrError(f"{error}. Calibrated: {measured}") from None
