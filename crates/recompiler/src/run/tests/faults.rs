//! Exceptions, single steps and interrupts, with the exact place where they hit.

use engine::reg::{RAX, RBX, RCX, RDX, RSP};
use engine::seg;
use iced_x86::{Decoder, DecoderOptions};

use super::{CODE, DATA, Guest, HANDLERS, STACK, code, guest};

/// Runs `before`, then `fault`; nothing but the exception happens there.
fn faults(before: &[u8], fault: &[u8], vector: u64, error: Option<u64>) {
    // Something before in the block, and flags and registers to be kept.
    let start = code!("mov r9d, 0x99", "add r8, r8");
    let code = [start, before, fault, code!("mov r9d, 1", "hlt")].concat();
    let mut guest = guest(&code);
    let cpu = guest.cpu();
    for (n, register) in cpu.gpr.iter_mut().enumerate() {
        if n != RSP && n != 6 {
            *register = 0x1000_0000_0000_0000 + n as u64;
        }
    }
    (cpu.gpr[RAX], cpu.gpr[RDX]) = (5, 0);
    cpu.gpr[8] = 1 << 63;
    let mut expected = cpu.gpr;
    (expected[8], expected[9]) = (0, 0x99);
    guest.run();
    assert_eq!(guest.vector(), vector);
    let skip = u64::from(error.is_some());
    if let Some(error) = error {
        assert_eq!(guest.stack(0), error);
    }
    let place = CODE + (start.len() + before.len()) as u64;
    assert_eq!((guest.stack(skip), guest.stack(skip + 1)), (place, 8));
    assert_eq!((guest.stack(skip + 3), guest.stack(skip + 4)), (STACK, 16));
    let (flags, gpr) = (guest.stack(skip + 2), guest.cpu().gpr);
    expected[RSP] = STACK - 40 - 8 * skip;
    // What `before` loads for the faulting instruction.
    for n in [RCX, 10, 11] {
        if before.len() > 1 && gpr[n] < 1 << 60 {
            expected[n] = gpr[n];
        }
    }
    assert_eq!(gpr, expected);
    // A division leaves the flags undefined, so nothing keeps them across its memory operand.
    // RF is set in the image of a fault (Intel SDM vol. 3, 18.3.1.1); CF, ZF, PF and OF by the addition.
    if before.is_empty() && vector != 0 {
        assert_eq!(flags & !(1 << 16), 0x847);
    }
}

#[test]
fn division_errors_hit_exactly() {
    faults(code!("mov ecx, 0"), code!("div rcx"), 0, None);
    faults(code!("mov r10d, 0"), code!("div r10"), 0, None);
    faults(code!("mov r11d, 0"), code!("idiv r11d"), 0, None);
    faults(&[], code!("div qword ptr [rsi]"), 0, None);
}

#[test]
fn misaligned_vectors_hit_exactly() {
    faults(&[], code!("movaps xmm0, xmmword ptr [rsi + 8]"), 13, Some(0));
    faults(&[], code!("movaps xmmword ptr [rsi + 0x1001], xmm3"), 13, Some(0));
    faults(code!("lea r11, [rsi + 4]"), code!("movdqa xmm1, xmmword ptr [r11]"), 13, Some(0));
    faults(code!("lea r10, [rsi + 0xff8]"), code!("movaps xmm1, xmmword ptr [r10]"), 13, Some(0));
}

#[test]
fn numeric_errors_hit_exactly() {
    let unmask = code!("mov dword ptr [rsi + 16], 0x1f00", "ldmxcsr dword ptr [rsi + 16]");
    faults(unmask, code!("divps xmm0, xmmword ptr [rsi + 32]"), 19, None);
    let divide = code!(
        "mov dword ptr [rsi + 16], 0x37b",
        "fldcw word ptr [rsi + 16]",
        "fld1",
        "fldz",
        "fdivp st(1), st"
    );
    faults(divide, code!("fwait"), 16, None);
    faults(divide, code!("fld1"), 16, None);
    faults(divide, code!("fst dword ptr [rsi]"), 16, None);
}

#[test]
fn undefined_and_breakpoint() {
    faults(&[], code!("ud2"), 6, None);
    faults(code!("int3"), &[], 3, None);
}

/// Offsets of instructions in `code`.
fn boundaries(code: &[u8]) -> Vec<u64> {
    let decoder = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE);
    decoder.into_iter().map(|insn| insn.ip()).collect()
}

#[test]
fn single_steps_trap_after_each_instruction() {
    let code = code!(
        "push 0x102",
        "popfq",
        "inc eax",
        "push rax",
        "pop rbx",
        "mov dword ptr [rsi], eax",
        "jmp 2f",
        "2: nop",
        "int3"
    );
    let mut guest = guest(code);
    // The handler of #DB notes where it comes from.
    guest.put_code(
        HANDLERS + 16,
        code!("pop r12", "mov qword ptr [rdi], r12", "push r12", "add rdi, 8", "iretq"),
    );
    guest.cpu().gpr[7] = DATA + 0x800;
    guest.run();
    assert_eq!(guest.vector(), 3);
    let expected = boundaries(code);
    let traps: Vec<_> = (0..6).map(|n| guest.data(0x800 + 8 * n)).collect();
    assert_eq!(traps, expected[3..9]);
    assert_eq!((guest.cpu().gpr[7], guest.cpu().gpr[RBX]), (DATA + 0x830, 1));
    assert_eq!(guest.cpu().dr[6] & 1 << 14, 1 << 14);
    // INT3 was pushed with TF set; its handler runs without.
    assert_eq!(guest.stack(2) & 0x100, 0x100);
    assert_eq!(guest.cpu().rflags & 0x100, 0);
}

/// Makes the local APIC hold a request of vector 40.
fn request(guest: &mut Guest) {
    let vcpu = &mut guest.vcpus[0];
    let mut state = vcpu.get_state();
    // Version, SVR with the enable bit, IRR.
    state.apic.regs[3] |= 0x14;
    state.apic.regs[0xf] = 0x1ff;
    state.apic.regs[0x20 + 2] = 1;
    vcpu.put_state(&state).unwrap();
}

#[test]
fn sti_holds_interrupts_off_for_one_instruction() {
    for (code, done) in [
        (code!("sti", "inc eax", "inc eax", "inc eax", "hlt"), 1),
        (code!("inc eax", "sti", "cli", "inc eax", "sti", "sti", "inc eax", "inc eax", "hlt"), 2),
        (code!("mov ecx, ss", "sti", "mov ss, ecx", "inc eax", "inc eax", "hlt"), 1),
    ] {
        let mut guest = guest(code);
        request(&mut guest);
        guest.run();
        assert_eq!(guest.vector(), 0x40);
        assert_eq!(guest.stack(1), 8);
        let at = (guest.stack(0) - CODE) as usize;
        assert_eq!((guest.cpu().gpr[RAX], at), (done, at), "{code:x?}");
        assert_eq!(guest.cpu().segments[seg::SS].selector, 16);
    }
}

#[test]
fn a_request_waits_while_interrupts_are_off() {
    let mut guest = guest(code!("inc eax", "hlt"));
    request(&mut guest);
    guest.run();
    assert_eq!((guest.cpu().gpr[RAX], guest.cpu().rip), (1, CODE + 3));
}
