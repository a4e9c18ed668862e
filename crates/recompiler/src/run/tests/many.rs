//! Several threads: kicks, interrupts into loops, vCPUs that share memory and code.

use std::time::Duration;

use engine::Stop;
use engine::reg::{RAX, RBX, RCX, RDI};

use super::{CODE, Guest, code, guest, guest_of, run};

#[test]
fn a_kick_stops_a_spinning_vcpu() {
    let mut guest = guest(code!("2: jmp 2b"));
    let mut vcpu = guest.vcpus.remove(0);
    let doorstep = vcpu.doorstep();
    let thread = std::thread::spawn(move || (vcpu.run_loop(), vcpu));
    std::thread::sleep(Duration::from_millis(20));
    doorstep.set_stop(true);
    let (stop, mut vcpu) = thread.join().unwrap();
    assert_eq!((stop, vcpu.cpu_mut().rip), (Stop::Stopped, CODE));
}

#[test]
fn an_nmi_hits_a_tight_loop_between_its_blocks() {
    let mut guest = guest(code!("2: add rax, 1", "sub rbx, 1", "jmp 2b"));
    let apic = guest.cpu().apic.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            apic.raise_nmi();
        });
        guest.run();
    });
    assert_eq!((guest.vector(), guest.stack(0)), (2, CODE));
    let cpu = guest.cpu();
    assert!(cpu.gpr[RAX] > 0);
    assert_eq!(cpu.gpr[RAX].wrapping_add(cpu.gpr[RBX]), 0);
}

/// Runs both vCPUs to their HLT.
fn run_all(guest: &mut Guest) {
    std::thread::scope(|scope| {
        for vcpu in &mut guest.vcpus {
            scope.spawn(move || run(vcpu));
        }
    });
}

#[test]
fn locked_increments_of_two_vcpus_add_up() {
    // Aligned, inside a cache line, and across two pages, in three ways each.
    for (at, times) in [(0x100, 50_000), (0x103, 50_000), (0xffd, 2_000)] {
        let mut guest = guest_of(
            2,
            code!(
                "2: lock inc qword ptr [rdi]",
                "mov eax, 1",
                "lock xadd qword ptr [rdi], rax",
                "3: mov rax, qword ptr [rdi]",
                "lea rdx, [rax + 1]",
                "lock cmpxchg qword ptr [rdi], rdx",
                "jnz 3b",
                "dec ecx",
                "jnz 2b",
                "hlt"
            ),
        );
        for vcpu in &mut guest.vcpus {
            let cpu = vcpu.cpu_mut();
            (cpu.gpr[RCX], cpu.gpr[RDI]) = (times, super::DATA + at);
        }
        run_all(&mut guest);
        assert_eq!(guest.data(at), 6 * times, "at {at:#x}");
    }
}

#[test]
fn a_vcpu_runs_what_another_wrote() {
    const ROUNDS: u64 = 300;
    let mut guest = guest_of(
        2,
        code!(
            "2: cmp dword ptr [rsi], r12d",
            "jne 2b",
            // Serializes, as cross-modifying code must (Intel SDM vol. 3, 9.1.3).
            "xor eax, eax",
            "cpuid",
            "call rdi",
            "cmp eax, r12d",
            "je 3f",
            "inc r13",
            "3: mov dword ptr [rsi + 64], r12d",
            "inc r12d",
            "cmp r12d, r14d",
            "jne 2b",
            "hlt"
        ),
    );
    guest.put_code(0x1000, code!("mov eax, 0x7fffffff", "ret"));
    guest.put_code(
        0x2000,
        code!(
            "2: mov dword ptr [rdi + 1], r12d",
            "mov dword ptr [rsi], r12d",
            "3: cmp dword ptr [rsi + 64], r12d",
            "jne 3b",
            "inc r12d",
            "cmp r12d, r14d",
            "jne 2b",
            "hlt"
        ),
    );
    for vcpu in &mut guest.vcpus {
        let cpu = vcpu.cpu_mut();
        cpu.gpr[RDI] = CODE + 0x1000;
        (cpu.gpr[12], cpu.gpr[14]) = (1, 1 + ROUNDS);
    }
    guest.vcpus[1].cpu_mut().rip = CODE + 0x2000;
    run_all(&mut guest);
    let cpu = guest.cpu();
    assert_eq!((cpu.gpr[12], cpu.gpr[13]), (1 + ROUNDS, 0), "{} of the calls ran old code", cpu.gpr[13]);
}
