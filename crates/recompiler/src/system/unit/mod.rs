//! Control registers, MSRs, ports, strings, FPU state and old instructions, one by one.

mod control;
mod fpu;
mod io;
mod legacy;
mod masked;
mod msr;
mod string;

use crate::exception::{Exception, vector};

const GP: Exception = Exception::gp(0);
const UD: Exception = Exception::ud();
const DEVICE: Exception = Exception::plain(vector::NM);
