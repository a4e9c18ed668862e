//! Exceptions that a guest instruction raises.

/// An exception that is to be delivered to the guest (Intel SDM vol. 3, 6.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0–31.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// For page faults: the linear address, which delivery puts into CR2.
    pub address: Option<u64>,
}

/// Exception vectors by name.
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, address: None }
    }

    /// An exception with an error code.
    pub const fn with(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), address: None }
    }

    /// #UD.
    pub const fn ud() -> Self {
        Self::plain(vector::UD)
    }

    /// #GP with `error`.
    pub const fn gp(error: u32) -> Self {
        Self::with(vector::GP, error)
    }

    /// #PF at linear `address`.
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), address: Some(address) }
    }
}

/// Result of something that may fault.
pub type Exec<T> = Result<T, Exception>;
