"""The plots of a report, drawn from its JSON as inline SVG that follows the colours of the page."""
