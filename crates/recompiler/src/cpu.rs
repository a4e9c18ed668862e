//! The vCPU structure. Translated code addresses it through GS; everything else is Rust.

use std::sync::Arc;

use engine::{Counters, Event, Segment, TableRegister, seg};

use crate::apic::Apic;
use crate::mmu::{PagingLimits, Tlb};
use crate::shared::Shared;

/// The six arithmetic flags CF PF AF ZF SF OF, which live in host RFLAGS while guest code runs.
pub const ARITHMETIC_FLAGS: u64 = 0x8d5;

/// RFLAGS bits (Intel SDM vol. 1, 3.4.3).
pub mod flag {
    #![allow(missing_docs)]
    pub const CF: u64 = 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
}

/// CR0, CR4 and EFER bits (Intel SDM vol. 3, 2.5 and 2.2.1).
pub mod control {
    #![allow(missing_docs)]
    pub const CR0_PE: u64 = 1;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_VME: u64 = 1;
    pub const CR4_PVI: u64 = 1 << 1;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_SCE: u64 = 1;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
}

/// Model-specific registers that system instructions use directly. Others are in `Cpu::msrs`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemMsrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS, _ESP and _EIP.
    pub sysenter: [u64; 3],
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
}

/// What this engine counts.
const COUNTED: [Event; 13] = [
    Event::Exit,
    Event::Hlt,
    Event::ControlRegister,
    Event::ReadMsr,
    Event::WriteMsr,
    Event::Port,
    Event::Cpuid,
    Event::NestedFault,
    Event::Emulated,
    Event::Exception,
    Event::IdleTicks,
    Event::Nmi,
    Event::ExternalDelivered,
];

/// Whether, and for what, the vCPU waits. Only its own thread changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Executes.
    Running,
    /// In HLT.
    Halted,
    /// Waits for a SIPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// What translated code and the run loop hand each other.
#[repr(C)]
pub struct Jit {
    /// Host stack pointer while translated code runs.
    pub host_rsp: u64,
    /// Where to enter.
    pub target: u64,
    /// Why translated code left ([`crate::cache::ExitKind`]).
    pub exit_kind: u32,
    /// Which exit, access site or system instruction it was.
    pub exit_arg: u32,
    /// Where a host exception was raised.
    pub fault_at: u64,
    /// Host R10 at the exit: an address or a jump target.
    pub value: u64,
    /// RCX while a check uses it.
    pub saved_rcx: u64,
    /// A register that an instruction borrows.
    pub spill: u64,
    /// Nonzero: the upper half of some YMM register is not 0.
    pub upper_used: u32,
    /// Nonzero: a maskable interrupt waits for RFLAGS.IF.
    pub waiting: u32,
    /// Arithmetic flags at the last entry or exit: SF ZF AF PF CF in bits 8–15 as LAHF has them,
    /// OF in bits 0–7.
    pub flags: u64,
    /// The host's MXCSR.
    pub host_mxcsr: u32,
    /// Bits of a linear address that index the TLB, for PEXT.
    pub index_mask: u64,
    /// Bits of an offset that must be 0 inside a page, for PEXT.
    pub page_mask: u64,
    /// Operand of an instruction that can't work on guest RAM directly.
    pub bounce: Bounce,
}

/// Aligned so that any vector operand can have the guest operand's alignment.
#[repr(C, align(64))]
pub struct Bounce(pub [u8; 192]);

/// Index is the low 16 bits of a target's linear address. See `translate/branch.rs`.
#[repr(C)]
pub struct JumpCache {
    /// Minus (linear address + mode); what no target matches: [`JumpCache::EMPTY`].
    pub tags: [u64; JumpCache::SIZE],
    /// Host address of the block's checked entry.
    pub hosts: [u64; JumpCache::SIZE],
}

impl JumpCache {
    /// Number of entries.
    pub const SIZE: usize = 1 << 16;
    /// A tag of no target: minus a non-canonical address.
    pub const EMPTY: u64 = 1 << 62;
}

/// One vCPU. The fields up to the TLB are read and written by translated code, by offset.
///
/// While Rust runs, all registers are here; `rflags` is complete. General registers hold zeros in
/// their upper halves where the architecture leaves them undefined.
#[repr(C, align(64))]
pub struct Cpu {
    /// General registers in encoding order ([`engine::reg`]).
    pub gpr: [u64; 16],
    /// Instruction pointer (an offset in CS).
    pub rip: u64,
    /// All of RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR ([`engine::seg`]).
    pub segments: [Segment; 8],
    /// Current privilege level.
    pub cpl: u8,
    /// Nonzero: leave translated code at the next block boundary. Set by any thread through
    /// [`crate::shared::Attention`], which points here.
    pub attention: std::sync::atomic::AtomicU32,
    /// Guest YMM0–15, low half first, while Rust runs (translated code holds them in the host's).
    pub vectors: [[u64; 4]; 16],
    /// Guest MXCSR. x87 state always stays in the host FPU of the vCPU's thread.
    pub mxcsr: u32,
    /// What translated code and the run loop hand each other.
    pub jit: Jit,
    /// Address translations for loads and stores of translated code.
    pub tlb: Tlb,
    /// Targets of indirect jumps.
    pub jumps: JumpCache,

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
    /// The page-directory-pointer entries that a CR3 load in PAE mode cached (SDM vol. 3, 4.4.1).
    pub pdptes: [u64; 4],
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0–DR3, DR6 in 6, DR7 in 7.
    pub dr: [u64; 8],
    /// System MSRs.
    pub msr: SystemMsrs,
    /// Further MSRs that just hold their value.
    pub msrs: std::collections::BTreeMap<u32, u64>,
    /// Guest TSC minus host TSC.
    pub tsc_offset: u64,
    /// Local APIC.
    pub apic: Arc<Apic>,
    /// Interrupts are held off until the next instruction is done (STI, MOV SS, POP SS).
    pub shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Whether it executes.
    pub activity: Activity,
    /// 0-based number of the vCPU.
    pub id: u32,
    /// What CPUID says that paging allows for.
    pub paging: PagingLimits,
    /// What it did so far.
    pub counters: Arc<Counters>,
    /// What all vCPUs of the VM share.
    pub shared: Arc<Shared>,
}

impl Cpu {
    /// A vCPU after power-on. It is too large for the stack, so it is built in place.
    pub fn new_boxed(shared: Arc<Shared>, id: u32, apic: Arc<Apic>) -> Box<Self> {
        let reset = engine::VcpuState::reset(id);
        let mut space: Box<std::mem::MaybeUninit<Self>> = Box::new_zeroed();
        let cpu = space.as_mut_ptr();
        // SAFETY: `cpu` points to zeroed memory of the right size and alignment. Every field for
        // which zero bytes are no value (Vec, BTreeMap, Arc) is written before `assume_init`; all
        // others (integers, bool, arrays of them, `Activity` with its discriminant 0) may be zero.
        unsafe {
            (&raw mut (*cpu).tlb.filled).write(Default::default());
            (&raw mut (*cpu).tlb.written).write(Arc::default());
            (&raw mut (*cpu).msrs).write(std::collections::BTreeMap::new());
            (&raw mut (*cpu).apic).write(apic);
            (&raw mut (*cpu).counters).write(Arc::new(Counters::new(&COUNTED)));
            (&raw mut (*cpu).shared).write(shared);
        }
        // SAFETY: as above.
        let mut cpu = unsafe { space.assume_init() };
        cpu.id = id;
        cpu.rip = reset.rip;
        cpu.rflags = reset.rflags;
        cpu.segments = reset.segments;
        cpu.gdtr = reset.gdtr;
        cpu.idtr = reset.idtr;
        cpu.cr0 = reset.cr0;
        cpu.xcr0 = reset.xcr0;
        cpu.dr = reset.dr;
        cpu.mxcsr = 0x1f80;
        cpu.jit.index_mask = (crate::mmu::ENTRIES as u64 - 1) * memory::PAGE_SIZE;
        cpu.jit.page_mask = !(memory::PAGE_SIZE - 1);
        cpu.activity = if id == 0 { Activity::Running } else { Activity::WaitForSipi };
        cpu.tlb.init();
        cpu.jumps.tags.fill(JumpCache::EMPTY);
        cpu.paging = PagingLimits::of(&cpu);
        cpu
    }

    /// Whether CR0.PE is set.
    pub fn protected(&self) -> bool {
        self.cr0 & control::CR0_PE != 0
    }

    /// Whether the processor is in virtual-8086 mode.
    pub fn virtual_8086(&self) -> bool {
        self.rflags & flag::VM != 0
    }

    /// Whether IA-32e mode is active (EFER.LMA), be it 64-bit or compatibility.
    pub fn long_mode(&self) -> bool {
        self.efer & control::EFER_LMA != 0
    }

    /// Whether code runs in 64-bit mode.
    pub fn code64(&self) -> bool {
        self.long_mode() && self.segments[seg::CS].access & Segment::LONG != 0
    }

    /// Default operand and address size of code: 16, 32 or 64.
    pub fn bitness(&self) -> u32 {
        if self.code64() {
            64
        } else if self.segments[seg::CS].access & Segment::BIG != 0 {
            32
        } else {
            16
        }
    }

    /// I/O privilege level.
    pub fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }

    /// To be called after this vCPU has stored `len` bytes of RAM at `gpa` on a page that holds
    /// translated code.
    pub fn code_written(&mut self, gpa: u64, len: u64) {
        self.shared.services.memory.note_write(gpa, len);
    }
}
