"""load -> lift -> plan -> fold -> splice -> prove -> save, one model: `run.run` calls the stages in this order."""
