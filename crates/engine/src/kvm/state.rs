//! Between KVM's structures and [`VcpuState`].

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs,
    kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::cpuid::APIC_BUS_HZ;
use super::failed;
use crate::{
    ApicState, Error, FpuState, Pending, Result, RunState, Segment, TableRegister, VcpuState, reg, seg,
};

/// MSRs that are kept where KVM has them (Intel SDM vol. 4; AMD APM vol. 2, appendix A): TSC, TSC_ADJUST,
/// SPEC_CTRL, the SYSENTER ones, MISC_ENABLE, PAT, MTRRs, TSC_DEADLINE, XSS, the SYSCALL ones,
/// KERNEL_GS_BASE, TSC_AUX.
const KEPT: [u32; 42] = [
    0x10,
    0x3b,
    0x48,
    0x174,
    0x175,
    0x176,
    0x1a0,
    0x200,
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    0x250,
    0x258,
    0x259,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x277,
    0x2ff,
    0x6e0,
    0xda0,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0xc000_0103,
];
const TSC_ADJUST: u32 = 0x3b;
const TSC_DEADLINE: u32 = 0x6e0;

/// Registers of the local APIC as indices (Intel SDM vol. 3, table 11-1).
const APIC_ID: usize = 2;
const APIC_VERSION: usize = 3;
const APIC_TPR: usize = 8;
const APIC_ISR: usize = 0x10;
const APIC_IRR: usize = 0x20;
const APIC_LVT_TIMER: usize = 0x32;
const APIC_CURRENT: usize = 0x39;
const APIC_DIVIDE: usize = 0x3e;
/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;

/// Bytes of the part of the XSAVE area that [`FpuState`] has, and the state components in it.
const AREA: usize = 832;
const COMPONENTS: u64 = 7;
/// XSTATE_BV and XCOMP_BV in the area's header.
const XSTATE_BV: usize = 512;

/// What conversions need to know of the VM.
pub struct Context {
    /// MSRs of [`KEPT`] that KVM has.
    pub msrs: Vec<u32>,
    /// The local APIC after power-on.
    pub reset_apic: kvm_lapic_state,
    /// Now on the VM's clock.
    pub now: u64,
    pub has_xcrs: bool,
}

fn from_segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, shift: u32| u32::from(value & 1) << shift;
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        access: u32::from(s.type_ & 15)
            | bit(s.s, 4)
            | u32::from(s.dpl & 3) << 5
            | bit(s.present, 7)
            | bit(s.avl, 12)
            | bit(s.l, 13)
            | bit(s.db, 14)
            | bit(s.g, 15)
            | bit(s.unusable, 16),
    }
}

fn to_segment(s: &Segment) -> kvm_segment {
    let bit = |shift: u32| (s.access >> shift & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & 15) as u8,
        s: bit(4),
        dpl: s.dpl(),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        // A segment that is not present can't be used (as KVM itself has it).
        unusable: bit(16) | u8::from(bit(7) == 0),
        padding: 0,
    }
}

fn from_table(t: &kvm_dtable) -> TableRegister {
    TableRegister { base: t.base, limit: t.limit }
}

fn to_table(t: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

fn from_regs(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ]
}

fn to_regs(state: &VcpuState) -> kvm_regs {
    let g = &state.gpr;
    kvm_regs {
        rax: g[reg::RAX],
        rcx: g[reg::RCX],
        rdx: g[reg::RDX],
        rbx: g[reg::RBX],
        rsp: g[reg::RSP],
        rbp: g[reg::RBP],
        rsi: g[reg::RSI],
        rdi: g[reg::RDI],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn to_sregs(state: &VcpuState) -> kvm_sregs {
    let s = |n: usize| to_segment(&state.segments[n]);
    kvm_sregs {
        es: s(seg::ES),
        cs: s(seg::CS),
        ss: s(seg::SS),
        ds: s(seg::DS),
        fs: s(seg::FS),
        gs: s(seg::GS),
        ldt: s(seg::LDTR),
        tr: s(seg::TR),
        gdt: to_table(&state.gdtr),
        idt: to_table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        // Task priority class.
        cr8: u64::from(state.apic.regs[APIC_TPR] >> 4 & 15),
        efer: state.efer,
        apic_base: state.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

fn from_xsave(xsave: &kvm_xsave) -> FpuState {
    let mut fpu = FpuState::default();
    for (to, word) in fpu.area.chunks_exact_mut(4).zip(&xsave.region) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    // A component whose bit is clear is in its initial state, whatever the area holds (Intel SDM vol. 1,
    // 13.6).
    let present = fpu.area[XSTATE_BV];
    let initial = FpuState::default();
    let mxcsr: [u8; 8] = std::array::from_fn(|i| fpu.area[24 + i]);
    if present & 1 == 0 {
        fpu.area[..160].copy_from_slice(&initial.area[..160]);
        // MXCSR belongs to SSE.
        fpu.area[24..32].copy_from_slice(&mxcsr);
    }
    if present & 2 == 0 {
        fpu.area[160..416].fill(0);
        if present & 4 == 0 {
            fpu.area[24..28].copy_from_slice(&initial.area[24..28]);
        }
    }
    if present & 4 == 0 {
        fpu.area[576..AREA].fill(0);
    }
    fpu.area[416..576].fill(0);
    fpu.area[XSTATE_BV] = COMPONENTS as u8;
    fpu
}

fn to_xsave(fpu: &FpuState, xcr0: u64) -> kvm_xsave {
    let mut xsave = kvm_xsave::default();
    for (from, word) in fpu.area.chunks_exact(4).zip(&mut xsave.region) {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(from);
        *word = u32::from_le_bytes(bytes);
    }
    // Standard form; what XCR0 does not have must not be present. SSE always is.
    xsave.region[XSTATE_BV / 4] &= (xcr0 & COMPONENTS | 3) as u32;
    xsave.region[XSTATE_BV / 4 + 1..576 / 4].fill(0);
    xsave
}

fn apic_word(apic: &kvm_lapic_state, index: usize) -> u32 {
    let byte = |i: usize| apic.regs.get(index * 16 + i).copied().unwrap_or(0) as u8;
    u32::from_le_bytes(std::array::from_fn(byte))
}

fn set_apic_word(apic: &mut kvm_lapic_state, index: usize, value: u32) {
    for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
        if let Some(place) = apic.regs.get_mut(index * 16 + i) {
            *place = byte as _;
        }
    }
}

/// Ticks a second of the timer: divide configuration bits 3, 1 and 0 give 2, 4 … 128, 1.
fn timer_hz(divide: u32) -> u64 {
    let code = divide & 3 | divide >> 1 & 4;
    APIC_BUS_HZ >> ((code + 1) & 7)
}

/// Whether the timer's LVT is in TSC-deadline mode.
fn deadline_mode(lvt: u32) -> bool {
    lvt >> 17 & 3 == 2
}

fn from_apic(apic: &kvm_lapic_state, now: u64) -> ApicState {
    let mut state = ApicState { regs: std::array::from_fn(|i| apic_word(apic, i)), timer_deadline: 0 };
    let left = u64::from(state.regs[APIC_CURRENT]);
    if left != 0 && !deadline_mode(state.regs[APIC_LVT_TIMER]) {
        state.timer_deadline = now + bus::Clock::nanos(left, timer_hz(state.regs[APIC_DIVIDE]));
    }
    state
}

fn to_apic(state: &VcpuState, apic_id: u32, context: &Context) -> kvm_lapic_state {
    let mut apic = context.reset_apic;
    let x2apic = state.apic_base & X2APIC != 0;
    // A page that was never written (version 0) stands for the state after power-on.
    if state.apic.regs[APIC_VERSION] != 0 {
        for (i, value) in state.apic.regs.iter().enumerate() {
            set_apic_word(&mut apic, i, *value);
        }
        set_apic_word(&mut apic, APIC_VERSION, apic_word(&context.reset_apic, APIC_VERSION));
        let left = match state.apic.timer_deadline {
            0 => 0,
            deadline => {
                let nanos = deadline.saturating_sub(context.now);
                let hz = timer_hz(state.apic.regs[APIC_DIVIDE]);
                // One that has passed is due now.
                bus::Clock::ticks(nanos, hz).clamp(1, u64::from(u32::MAX)) as u32
            }
        };
        set_apic_word(&mut apic, APIC_CURRENT, left);
    }
    set_apic_word(&mut apic, APIC_ID, if x2apic { apic_id } else { apic_id << 24 });
    apic
}

/// Takes an interrupt that KVM was about to deliver back to where it is pending. One that is not in
/// service came from the PIC, where it is.
fn requeue(apic: &mut ApicState, vector: u8) {
    let (word, bit) = (usize::from(vector / 32), 1u32 << (vector % 32));
    match apic.regs.get_mut(APIC_ISR + word) {
        Some(isr) if *isr & bit != 0 => *isr &= !bit,
        _ => return,
    }
    if let Some(irr) = apic.regs.get_mut(APIC_IRR + word) {
        *irr |= bit;
    }
}

/// Which MSRs of [`KEPT`] this KVM has.
pub fn kept_msrs(vcpu: &VcpuFd) -> Vec<u32> {
    KEPT.into_iter()
        .filter(|index| read_msrs(vcpu, &[*index]).is_ok_and(|values| values.len() == 1))
        .collect()
}

fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>> {
    let entries: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| Error::State("too many MSRs"))?;
    let read = vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
    Ok(msrs.as_slice().iter().take(read).map(|e| (e.index, e.data)).collect())
}

fn write_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<()> {
    let mut entries: Vec<_> =
        values.iter().map(|&(index, data)| kvm_msr_entry { index, data, reserved: 0 }).collect();
    while !entries.is_empty() {
        let msrs = Msrs::from_entries(&entries).map_err(|_| Error::State("too many MSRs"))?;
        let written = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        let Some(refused) = entries.get(written) else { return Ok(()) };
        // Engines differ in which MSRs exist; one that holds its initial 0 need not.
        if refused.data != 0 {
            return Err(Error::State("a model-specific register has a value that KVM refuses"));
        }
        entries.drain(..=written);
    }
    Ok(())
}

/// The whole state.
pub fn get(vcpu: &VcpuFd, context: &Context) -> Result<VcpuState> {
    // First, because it makes KVM take in a pending INIT or SIPI.
    let mp = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let xsave = vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
    let debug = vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
    let events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
    let lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let mut apic = from_apic(&lapic, context.now);
    if events.interrupt.injected != 0 && events.interrupt.soft == 0 {
        requeue(&mut apic, events.interrupt.nr);
    }
    // Exceptions and software interrupts in delivery need no place: RIP is still at their instruction,
    // which will raise them again.
    let [db0, db1, db2, db3] = debug.db;
    Ok(VcpuState {
        gpr: from_regs(&regs),
        rip: regs.rip,
        rflags: regs.rflags,
        segments: [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs, sregs.ldt, sregs.tr]
            .map(|s| from_segment(&s)),
        gdtr: from_table(&sregs.gdt),
        idtr: from_table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        xcr0: xcr0(vcpu, context)?,
        dr: [db0, db1, db2, db3, 0, 0, debug.dr6, debug.dr7],
        fpu: from_xsave(&xsave),
        msrs: read_msrs(vcpu, &context.msrs)?,
        apic_base: sregs.apic_base,
        apic,
        run: match mp.mp_state {
            KVM_MP_STATE_HALTED => RunState::Halted,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => RunState::WaitForSipi,
            _ => RunState::Running,
        },
        pending: Pending {
            nmi: events.nmi.pending != 0 || events.nmi.injected != 0,
            nmi_blocked: events.nmi.masked != 0 && events.nmi.injected == 0,
            shadow: events.interrupt.shadow != 0,
        },
    })
}

fn xcr0(vcpu: &VcpuFd, context: &Context) -> Result<u64> {
    if !context.has_xcrs {
        return Ok(1);
    }
    let xcrs = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let found = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|x| x.xcr == 0);
    Ok(found.map_or(1, |x| x.value))
}

/// Replaces the whole state.
pub fn set(vcpu: &VcpuFd, state: &VcpuState, apic_id: u32, context: &Context) -> Result<()> {
    if state.rflags & 2 == 0 {
        return Err(Error::State("RFLAGS bit 1 is always set"));
    }
    set_execution(vcpu, state, context)?;
    // After the special registers, which hold the APIC's mode.
    let apic = to_apic(state, apic_id, context);
    vcpu.set_lapic(&apic).map_err(failed("KVM_SET_LAPIC"))?;
    // TSC_DEADLINE needs the APIC's timer mode. TSC_ADJUST follows the TSC, which it would shift.
    let late = |index: u32| matches!(index, TSC_DEADLINE | TSC_ADJUST);
    let (late, early): (Vec<_>, Vec<_>) = state.msrs.iter().partition(|(index, _)| late(*index));
    write_msrs(vcpu, &early)?;
    write_msrs(vcpu, &late)?;
    let mp_state = match state.run {
        RunState::Running => KVM_MP_STATE_RUNNABLE,
        RunState::Halted => KVM_MP_STATE_HALTED,
        // Not "uninitialized": there KVM takes no SIPI before an INIT.
        RunState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    };
    vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(failed("KVM_SET_MP_STATE"))
}

/// Replaces what one instruction can change, short of MSRs and the APIC.
pub fn set_execution(vcpu: &VcpuFd, state: &VcpuState, context: &Context) -> Result<()> {
    vcpu.set_sregs(&to_sregs(state)).map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&to_regs(state)).map_err(failed("KVM_SET_REGS"))?;
    if context.has_xcrs {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        if let Some(first) = xcrs.xcrs.first_mut() {
            first.value = state.xcr0;
        }
        vcpu.set_xcrs(&xcrs).map_err(failed("KVM_SET_XCRS"))?;
    }
    let xsave = to_xsave(&state.fpu, state.xcr0);
    // SAFETY: without features beyond the 4096-byte area enabled for guests, KVM reads no more than that.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
    let [db0, db1, db2, db3, _, _, dr6, dr7] = state.dr;
    let debug = kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..Default::default() };
    vcpu.set_debug_regs(&debug).map_err(failed("KVM_SET_DEBUGREGS"))?;
    let mut events = kvm_vcpu_events {
        flags: kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING | kvm_bindings::KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    events.nmi.pending = u8::from(state.pending.nmi);
    events.nmi.masked = u8::from(state.pending.nmi_blocked);
    // STI's shadow and MOV SS's are one to us (KVM_X86_SHADOW_INT_STI).
    events.interrupt.shadow = if state.pending.shadow { 2 } else { 0 };
    vcpu.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
}

/// Takes over what a stepper has changed.
pub fn set_stepped(vcpu: &VcpuFd, before: &VcpuState, after: &VcpuState, context: &Context) -> Result<()> {
    set_execution(vcpu, after, context)?;
    let changed = |entry: &&(u32, u64)| entry.0 != 0x10 && !before.msrs.contains(entry);
    let msrs: Vec<_> = after.msrs.iter().filter(changed).copied().collect();
    write_msrs(vcpu, &msrs)?;
    if after.run == RunState::Halted {
        let halted = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
        vcpu.set_mp_state(halted).map_err(failed("KVM_SET_MP_STATE"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_conversion() {
        for access in [0x93, 0xc09b, 0xa09b, 0xc0f3, 0x8b, 0x82, 0x1_0000, 0xf_f0ff & 0x1f0ff] {
            let segment = Segment { base: 0x1234_5678_9abc, limit: 0xf_ffff, access, selector: 0x2b };
            let back = from_segment(&to_segment(&segment));
            let unusable = if access & Segment::PRESENT == 0 { Segment::UNUSABLE } else { 0 };
            assert_eq!(back, Segment { access: access | unusable, ..segment }, "{access:x}");
        }
    }

    #[test]
    fn components_in_their_initial_state_read_as_such() {
        let mut xsave = kvm_xsave::default();
        xsave.region.fill(0x5555_5555);
        xsave.region[XSTATE_BV / 4] = 0;
        let mut fpu = from_xsave(&xsave);
        // MXCSR's mask tells of the processor.
        fpu.area[28..32].fill(0);
        assert!(fpu == FpuState::default());
        xsave.region[XSTATE_BV / 4] = 2;
        let fpu = from_xsave(&xsave);
        assert_eq!((fpu.area[0], fpu.area[24], fpu.area[160], fpu.area[576]), (0x7f, 0x55, 0x55, 0));
        assert_eq!(to_xsave(&fpu, 3).region[XSTATE_BV / 4], 3);
        assert_eq!(to_xsave(&fpu, 7).region[XSTATE_BV / 4], 7);
    }

    #[test]
    fn the_apic_timer_goes_on_from_its_deadline() {
        let context =
            Context { msrs: vec![], reset_apic: kvm_lapic_state::default(), now: 500, has_xcrs: true };
        let mut state = VcpuState::reset(0);
        state.apic.regs[APIC_VERSION] = 0x50014;
        // Divide by 4.
        state.apic.regs[APIC_DIVIDE] = 1;
        state.apic.timer_deadline = 500 + 4000;
        let apic = to_apic(&state, 5, &context);
        assert_eq!((apic_word(&apic, APIC_CURRENT), apic_word(&apic, APIC_ID)), (1000, 5 << 24));
        assert_eq!(from_apic(&apic, 500).timer_deadline, 4500);
        state.apic.timer_deadline = 10;
        assert_eq!(apic_word(&to_apic(&state, 5, &context), APIC_CURRENT), 1);
    }

    #[test]
    fn an_interrupt_in_delivery_is_pending_again() {
        let mut apic = ApicState::default();
        apic.regs[APIC_ISR + 2] = 0b11;
        requeue(&mut apic, 0x41);
        requeue(&mut apic, 0x28);
        assert_eq!((apic.regs[APIC_ISR + 2], apic.regs[APIC_IRR + 2]), (0b01, 0b10));
        assert_eq!((apic.regs[APIC_ISR + 1], apic.regs[APIC_IRR + 1]), (0, 0));
    }
}
