//! A controller and its workers in this process, against devices that hold, fail and lose what they are given.

mod bounds;
mod compare;
mod fused;
mod identity;
mod in_flight;
mod interrupts;
mod intx;
mod moves;
mod operation;
mod resize;
mod rig;
mod rules;
mod security;
mod shadow;
