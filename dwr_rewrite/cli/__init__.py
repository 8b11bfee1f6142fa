"""The commands ``dwr-rewrite``, ``dwr-verify`` and ``dwr-report``, one file each."""
