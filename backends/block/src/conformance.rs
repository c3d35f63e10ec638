//! The suite that every device passes (under construction).
