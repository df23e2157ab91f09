"""Questions about finished runs: diff, trace and templates."""
