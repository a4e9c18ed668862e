//! The guest's x87 state, which lives in the host FPU of the vCPU's thread.

/// An FXSAVE64 image (Intel SDM vol. 1, table 10-2).
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Image(pub [u8; 512]);

impl Image {
    /// Zeros.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self([0; 512])
    }

    /// The current x87 state, without host addresses: instruction and data pointers read 0. The
    /// SSE part of the image is the host's and means nothing.
    pub fn save() -> Self {
        let mut image = Self::new();
        // SAFETY: the image is aligned and large enough; FXSAVE changes nothing else.
        unsafe {
            std::arch::asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack, preserves_flags));
        };
        image.0[8..24].fill(0);
        image
    }

    /// Replaces the x87 state by this image's.
    pub fn load(&self) {
        let mut image = self.clone();
        // The host keeps its MXCSR; the guest's is loaded with its code.
        image.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        // SAFETY: aligned, and MXCSR has no reserved bit; Rust does not use x87, and the vector
        // registers that are overwritten are declared.
        unsafe {
            std::arch::asm!("fxrstor64 [{}]", in(reg) image.0.as_ptr(),
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, options(nostack, preserves_flags));
        }
    }

    /// Whether an unmasked exception waits (status bit 7, exception summary).
    pub fn pending(&self) -> bool {
        self.0[2] & 0x80 != 0
    }

    /// Makes physical register `top` the top of the stack; the registers stay where they are,
    /// which the image numbers from the top.
    pub fn turn(&mut self, top: usize) {
        let old = self.0;
        let by = (top + 8 - usize::from(old[3] >> 3 & 7)) % 8;
        for n in 0..8 {
            let from = 32 + 16 * ((n + by) % 8);
            self.0[32 + 16 * n..48 + 16 * n].copy_from_slice(&old[from..from + 16]);
        }
        self.0[3] = old[3] & !0x38 | (top as u8 & 7) << 3;
    }

    /// The initial state, as FNINIT makes it.
    pub fn initial() -> Self {
        let mut image = Self::new();
        image.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        image
    }
}

/// FNINIT on the host FPU.
pub fn init() {
    // SAFETY: only x87 state changes, which is the guest's.
    unsafe { std::arch::asm!("fninit", options(nostack, preserves_flags)) };
}
