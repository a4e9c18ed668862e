//! The architectural state of one vCPU, the same for every engine.

use serde::{Deserialize, Serialize};

/// Order of [`VcpuState::gpr`] and of every other register number here: as instructions encode
/// them (Intel SDM vol. 2, 2.1.5): rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15.
pub mod reg {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Segment registers in encoding order, then LDTR and TR.
pub mod seg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    pub const LDTR: usize = 6;
    pub const TR: usize = 7;
}

/// A segment register with its hidden part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (granularity applied): the last valid offset.
    pub limit: u32,
    /// Access rights as in bits 8–23 of a descriptor's upper half, shifted down by 8: type in
    /// bits 0–3, S bit 4, DPL bits 5–6, P bit 7, AVL bit 12, L bit 13, D/B bit 14, G bit 15;
    /// bit 16 set: unusable (as VMX, Intel SDM vol. 3, 25.4.1).
    pub access: u32,
    /// Selector.
    pub selector: u16,
}

/// Bits of [`Segment::access`].
impl Segment {
    /// Type bit 0: accessed.
    pub const ACCESSED: u32 = 1;
    /// S: code or data rather than system.
    pub const NON_SYSTEM: u32 = 1 << 4;
    /// P: present.
    pub const PRESENT: u32 = 1 << 7;
    /// L: 64-bit code.
    pub const LONG: u32 = 1 << 13;
    /// D/B: 32-bit default size or stack.
    pub const BIG: u32 = 1 << 14;
    /// G: limit in pages.
    pub const GRANULAR: u32 = 1 << 15;
    /// The segment holds a null selector or was never loaded.
    pub const UNUSABLE: u32 = 1 << 16;

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Last valid offset.
    pub limit: u16,
}

/// x87, SSE and AVX state as the standard (not compacted) XSAVE area (Intel SDM vol. 1, 13.4):
/// 512 bytes legacy region, 64 bytes header, 256 bytes upper halves of YMM.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// The area.
    #[serde(with = "crate::wire")]
    pub area: [u8; 832],
}

impl Default for FpuState {
    /// The state after FNINIT with MXCSR 1F80h.
    fn default() -> Self {
        let mut area = [0; 832];
        area[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        area[512] = 7;
        Self { area }
    }
}

/// Registers of the local APIC, 32 bits each, indexed by offset / 16 as in the xAPIC page (Intel
/// SDM vol. 3, table 11-1). The timer's remaining count is derived from `timer_deadline`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicState {
    /// The 64 registers of the page's first 1024 bytes.
    #[serde(with = "crate::wire")]
    pub regs: [u32; 64],
    /// When the timer expires next, ns on the VM's clock; 0: not running.
    pub timer_deadline: u64,
}

impl Default for ApicState {
    fn default() -> Self {
        Self { regs: [0; 64], timer_deadline: 0 }
    }
}

/// Whether the vCPU executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Executing.
    #[default]
    Running,
    /// In HLT until an interrupt.
    Halted,
    /// After power-on or INIT on an application processor: waits for a SIPI.
    WaitForSipi,
}

/// Events not delivered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// An NMI is latched.
    pub nmi: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Interrupts are held off for one instruction (STI, MOV SS, POP SS).
    pub shadow: bool,
}

/// Everything that a loader, a debugger, `bhyvectl` or another engine needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0–DR3, then DR6 and DR7 in places 6 and 7.
    pub dr: [u64; 8],
    /// x87, SSE and AVX.
    pub fpu: FpuState,
    /// Model-specific registers that have no place above: (index, value).
    pub msrs: Vec<(u32, u64)>,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Local APIC.
    pub apic: ApicState,
    /// Whether it executes.
    pub run: RunState,
    /// Events not delivered yet.
    pub pending: Pending,
}

impl VcpuState {
    /// The state after power-on (Intel SDM vol. 3, table 10-1): real mode, CS:IP F000:FFF0 with
    /// base FFFF0000. vCPU 0 runs and is the bootstrap processor, the others wait for a SIPI.
    pub fn reset(id: u32) -> Self {
        let data = Segment { base: 0, limit: 0xffff, access: 0x93, selector: 0 };
        let mut segments = [data; 8];
        segments[seg::CS] = Segment { base: 0xffff_0000, limit: 0xffff, access: 0x9b, selector: 0xf000 };
        segments[seg::LDTR].access = 0x82;
        segments[seg::TR].access = 0x8b;
        let table = TableRegister { base: 0, limit: 0xffff };
        Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: 2,
            segments,
            gdtr: table,
            idtr: table,
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            fpu: FpuState::default(),
            msrs: Vec::new(),
            apic_base: 0xfee0_0800 | if id == 0 { 0x100 } else { 0 },
            apic: ApicState::default(),
            run: if id == 0 { RunState::Running } else { RunState::WaitForSipi },
            pending: Pending::default(),
        }
    }
}
