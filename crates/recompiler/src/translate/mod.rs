//! Turns guest code into host code.

mod classify;
mod emit;
mod flags;
