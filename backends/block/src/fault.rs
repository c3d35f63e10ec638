//! Faults on demand (under construction).
