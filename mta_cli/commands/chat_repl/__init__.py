"""The prompt of `mta chat`: its loop, its slash commands, and the table of a comparison."""
