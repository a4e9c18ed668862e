//! Code that changes, and code in awkward places.

use engine::reg::{RAX, RBX, RDI, RDX};

use super::{CODE, CODE_GPA, code, guest};

#[test]
fn a_block_that_modifies_itself_runs_as_modified() {
    let code = code!(
        "mov ecx, 200",
        "xor edx, edx",
        "2: lea rbx, [rip + 3f]",
        "mov byte ptr [rbx + 1], cl",
        "3: mov al, 0",
        "movzx eax, al",
        "add edx, eax",
        "dec ecx",
        "jnz 2b",
        "hlt"
    );
    let mut guest = guest(code);
    guest.run();
    assert_eq!(guest.cpu().gpr[RDX], 20_100);
}

#[test]
fn code_on_another_page_runs_as_modified() {
    let mut guest = guest(code!(
        "mov ecx, 100",
        "xor edx, edx",
        "2: mov dword ptr [rdi + 1], ecx",
        "call rdi",
        "add edx, eax",
        "dec ecx",
        "jnz 2b",
        "hlt"
    ));
    guest.put_code(0x1000, code!("mov eax, 0x7fffffff", "ret"));
    guest.cpu().gpr[RDI] = CODE + 0x1000;
    guest.run();
    assert_eq!(guest.cpu().gpr[RDX], 5050);
}

#[test]
fn a_target_of_a_direct_jump_runs_as_modified() {
    // The target is on the next page, so that the jump's own block does not change.
    let mut guest = guest(code!(
        "mov ecx, 50",
        "xor edx, edx",
        "2: mov dword ptr [rdi + 1], ecx",
        "jmp 3f",
        "4: add edx, eax",
        "dec ecx",
        "jnz 2b",
        "hlt",
        ".skip 4096",
        "3: mov eax, 0x7fffffff",
        "jmp 4b"
    ));
    let mut page = [0; 0x100];
    guest.memory.read(CODE_GPA + 0x1000, &mut page).unwrap();
    let at = page.windows(5).position(|w| w == [0xb8, 0xff, 0xff, 0xff, 0x7f]).unwrap();
    guest.cpu().gpr[RDI] = CODE + 0x1000 + at as u64;
    guest.run();
    assert_eq!(guest.cpu().gpr[RDX], 1275);
}

#[test]
fn data_beside_code_can_be_stored() {
    let mut guest = guest(code!("mov ecx, 1000", "2: inc dword ptr [rdi]", "dec ecx", "jnz 2b", "hlt"));
    guest.cpu().gpr[RDI] = CODE + 0xf00;
    guest.run();
    let mut count = [0; 4];
    guest.memory.read(CODE_GPA + 0xf00, &mut count).unwrap();
    assert_eq!(u32::from_le_bytes(count), 1000);
}

#[test]
fn an_instruction_may_cross_pages_and_change_on_the_second() {
    let mut guest = guest(code!("mov byte ptr [rdi], 0x55", "jmp rbx"));
    let crossing = code!("movabs rax, 0x1122334455667788", "hlt");
    guest.put_code(0x1ffb, crossing);
    // Its last byte.
    guest.cpu().gpr[RDI] = CODE + 0x2004;
    guest.cpu().gpr[RBX] = CODE + 0x1ffb;
    guest.cpu().rip = CODE + 0x1ffb;
    guest.run();
    assert_eq!((guest.cpu().gpr[RAX], guest.cpu().rip), (0x1122_3344_5566_7788, CODE + 0x2006));
    guest.cpu().rip = CODE;
    guest.run();
    assert_eq!(guest.cpu().gpr[RAX], 0x5522_3344_5566_7788);
}
