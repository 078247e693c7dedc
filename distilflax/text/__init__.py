"""Words to ids: where text comes from, how it becomes tokens, and the prepared corpus on disk."""
