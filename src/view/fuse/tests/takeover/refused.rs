//! What no process can go on with, and what is left then.
