"""Is everything in place for the compiler? Checks that take seconds, before builds that take hours."""
