//! Delivery, returns, far transfers, task switches and system calls: frames byte for byte.

use engine::{Segment, reg, seg};

use super::interrupts::{Event, Kind, deliver, deliver_exception};
use super::{Flow, segments};
use crate::cpu::{Activity, Cpu, control, flag};
use crate::exception::{Exception, vector};
use crate::testing::*;

const LAR: &[u8] = &[0x0f, 0x02, 0xc1];
const LSL: &[u8] = &[0x0f, 0x03, 0xc1];
const IRET: &[u8] = &[0xcf];
const IRETQ: &[u8] = &[0x48, 0xcf];

fn frame(cpu: &mut Cpu, size: usize, count: u64) -> Vec<u64> {
    let at = cpu.segments[seg::SS].base + cpu.stack_pointer();
    (0..count).map(|i| cpu.look(at + i * size as u64, size)).collect()
}

fn selector(cpu: &Cpu, number: usize) -> u16 {
    cpu.segments[number].selector
}

#[test]
fn real_mode_interrupts_go_through_the_vector_table_and_back() {
    let mut cpu = cpu();
    cpu.poke(0x21 * 4, 4, 0x0123_0456);
    cpu.idtr.limit = 0x3ff;
    segments::load(&mut cpu, seg::SS, 0x200).unwrap();
    cpu.gpr[reg::RSP] = 0xaaaa_0100;
    cpu.segments[seg::CS] = segments::real_segment(&cpu.segments[seg::CS], 0x300, 0x9b);
    (cpu.rip, cpu.rflags) = (0x10, 0x246 | flag::TF);
    assert_eq!(cpu.run(&[0xcd, 0x21]), Ok(Flow::Jump));
    assert_eq!((cpu.rip, selector(&cpu, seg::CS), cpu.segments[seg::CS].base), (0x456, 0x123, 0x1230));
    assert_eq!(cpu.gpr[reg::RSP], 0xaaaa_00fa);
    assert_eq!(frame(&mut cpu, 2, 3), [0x12, 0x300, 0x346]);
    assert_eq!(cpu.rflags, 0x46);
    assert_eq!(cpu.run(IRET), Ok(Flow::Jump));
    assert_eq!((cpu.rip, cpu.segments[seg::CS].base, cpu.rflags), (0x12, 0x3000, 0x346));
    assert_eq!(cpu.gpr[reg::RSP], 0xaaaa_0100);
    // Beyond the table: #GP; the table ends before it too, so that is a double fault, then the end.
    cpu.idtr.limit = 0x1f;
    deliver(&mut cpu, Event::external(0x21));
    assert_eq!(cpu.activity, Activity::Shutdown);
}

#[test]
fn protected_mode_delivery_switches_stacks_and_returns() {
    let mut cpu = protected();
    cpu.poke(IDT + 0x80 * 8, 8, gate(CODE0, 0x1234_5678, 0xee, 0));
    cpu.poke(IDT + 13 * 8, 8, gate(CODE0, 0x4444, 0x8f, 0));
    cpu.at_level(3);
    cpu.rflags = 0x202 | flag::NT | flag::TF;
    cpu.activity = Activity::Halted;
    deliver(&mut cpu, Event::external(0x80));
    assert_eq!(
        (cpu.cpl, cpu.rip, selector(&cpu, seg::CS), selector(&cpu, seg::SS)),
        (0, 0x1234_5678, CODE0, DATA0)
    );
    assert_eq!(cpu.gpr[reg::RSP], 0x7000 - 20);
    let flags = 0x202 | flag::NT | flag::TF;
    assert_eq!(frame(&mut cpu, 4, 5), [0x6000, u64::from(CODE3), flags, STACK3, u64::from(DATA3)]);
    assert_eq!((cpu.rflags, cpu.activity), (2, Activity::Running));
    // A fault at level 0 stays on this stack; a trap gate leaves IF alone.
    cpu.rflags |= flag::IF;
    deliver_exception(&mut cpu, Exception::gp(0x50));
    assert_eq!(frame(&mut cpu, 4, 4), [0x50, 0x1234_5678, u64::from(CODE0), 0x202 | flag::RF]);
    assert_eq!((cpu.rip, cpu.rflags), (0x4444, 0x202));
    cpu.gpr[reg::RSP] += 4;
    assert_eq!(cpu.run(IRET), Ok(Flow::Jump));
    assert_eq!((cpu.rip, cpu.rflags), (0x1234_5678, 0x202 | flag::RF));
    assert_eq!(cpu.run(IRET), Ok(Flow::Jump));
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP], cpu.rflags), (3, 0x6000, STACK3, flags));
    // DS held a level 0 segment? No: it was loaded at level 3 and survives.
    assert_eq!(selector(&cpu, seg::DS), DATA3);
}

#[test]
fn a_return_outwards_takes_privileged_segments_away() {
    let mut cpu = protected();
    for value in [u64::from(DATA3), STACK3, 0x202, u64::from(CODE3), 0x6100] {
        cpu.push(4, value).unwrap();
    }
    cpu.rflags = 2;
    assert_eq!(cpu.run(IRET), Ok(Flow::Jump));
    assert_eq!((cpu.cpl, selector(&cpu, seg::DS), cpu.rflags), (3, 0, 0x202));
    assert_ne!(cpu.segments[seg::DS].access & Segment::UNUSABLE, 0);
    assert!(cpu.linear_address(seg::DS, 0, 1, false).is_err());
}

#[test]
fn software_interrupts_need_a_gate_of_their_privilege() {
    let mut cpu = protected();
    cpu.poke(IDT + 0x80 * 8, 8, gate(CODE0, 0x1000, 0x8e, 0));
    cpu.poke(IDT + 3 * 8, 8, gate(CODE0, 0x3000, 0xef, 0));
    cpu.at_level(3);
    let before = (cpu.rip, cpu.gpr, cpu.segments);
    assert_eq!(cpu.run(&[0xcd, 0x80]), Err(Exception::gp(0x80 * 8 + 2)));
    assert_eq!((cpu.rip, cpu.gpr, cpu.segments), before);
    assert_eq!(cpu.run(&[0xcd, 0x81]), Err(Exception::gp(0x81 * 8 + 2)));
    assert_eq!(cpu.run(&[0xce]), Ok(Flow::Next));
    cpu.rip = 0x6000;
    assert_eq!(cpu.run(&[0xcc]), Ok(Flow::Jump));
    assert_eq!((cpu.rip, cpu.cpl), (0x3000, 0));
    assert_eq!(frame(&mut cpu, 4, 1), [0x6001]);
    // Not present; an event from outside sets EXT.
    cpu.poke(IDT + 0x80 * 8, 8, gate(CODE0, 0x1000, 0x0e, 0));
    cpu.poke(IDT + 11 * 8, 8, gate(CODE0, 0x2000, 0x8e, 0));
    deliver(&mut cpu, Event::external(0x80));
    assert_eq!(cpu.rip, 0x2000);
    assert_eq!(frame(&mut cpu, 4, 1), [0x80 * 8 + 3]);
}

#[test]
fn double_and_triple_faults() {
    let mut cpu = protected();
    cpu.poke(IDT + 8 * 8, 8, gate(CODE0, 0x8888, 0x8e, 0));
    cpu.poke(IDT + 13 * 8, 8, gate(0, 0x4444, 0x8e, 0));
    // #GP through a gate with a null selector: #GP again, so #DF with error code 0.
    deliver_exception(&mut cpu, Exception::gp(0));
    assert_eq!((cpu.rip, cpu.activity), (0x8888, Activity::Running));
    assert_eq!(frame(&mut cpu, 4, 2), [0, 0x6000]);
    // A benign exception whose delivery faults is no double fault.
    cpu.poke(IDT + 13 * 8, 8, gate(CODE0, 0x4444, 0x8e, 0));
    deliver_exception(&mut cpu, Exception::ud());
    assert_eq!(cpu.rip, 0x4444);
    assert_eq!(frame(&mut cpu, 4, 1), [6 * 8 + 3]);
    // #PF, then #GP: double; its gate is bad too: shutdown. CR2 was set all the same.
    cpu.poke(IDT + 8 * 8, 8, 0);
    deliver_exception(&mut cpu, Exception::page_fault(0x1234, 2));
    assert_eq!((cpu.cr2, cpu.activity), (0x1234, Activity::Shutdown));
}

#[test]
fn an_inner_stack_that_does_not_fit_is_an_invalid_tss() {
    let mut cpu = protected();
    cpu.poke(IDT + 0x20 * 8, 8, gate(CODE0, 0x1000, 0x8e, 0));
    cpu.poke(IDT + 10 * 8, 8, gate(CODE3, 0xaaaa, 0x8e, 0));
    cpu.at_level(3);
    cpu.poke(TSS + 8, 4, u64::from(DATA3));
    deliver(&mut cpu, Event::external(0x20));
    assert_eq!((cpu.rip, cpu.cpl), (0xaaaa, 3));
    assert_eq!(frame(&mut cpu, 4, 1), [u64::from(DATA3 & 0xfffc) | 1]);
}

#[test]
fn virtual_8086_mode_enters_and_leaves_through_ring_0() {
    let mut cpu = protected();
    cpu.poke(IDT + 0x20 * 8, 8, gate(CODE0, 0x1000, 0xee, 0));
    let flags = 2 | flag::VM | flag::IF;
    for value in [0x44, 0x33, 0x22, 0x11, 0x100, 0xfff0, flags, 0x50, 0x10] {
        cpu.push(4, value).unwrap();
    }
    assert_eq!(cpu.run(IRET), Ok(Flow::Jump));
    assert_eq!((cpu.cpl, cpu.rip, cpu.rflags), (3, 0x10, flags));
    assert_eq!(
        (cpu.segments[seg::CS].base, cpu.segments[seg::SS].base, cpu.gpr[reg::RSP]),
        (0x500, 0x1000, 0xfff0)
    );
    let sregs = [seg::ES, seg::DS, seg::FS, seg::GS];
    assert_eq!(sregs.map(|s| selector(&cpu, s)), [0x11, 0x22, 0x33, 0x44]);
    // IOPL 0: INT n is for the monitor.
    assert_eq!(cpu.run(&[0xcd, 0x20]), Err(Exception::gp(0)));
    deliver(&mut cpu, Event::external(0x20));
    assert_eq!((cpu.cpl, cpu.rip, cpu.rflags), (0, 0x1000, 2));
    assert_eq!(frame(&mut cpu, 4, 9), [0x10, 0x50, flags, 0xfff0, 0x100, 0x11, 0x22, 0x33, 0x44]);
    assert_eq!(sregs.map(|s| selector(&cpu, s)), [0; 4]);
    cpu.run(IRET).unwrap();
    // With IOPL 3 it goes through the gate.
    cpu.rflags |= flag::IOPL;
    cpu.run(&[0xcd, 0x20]).unwrap();
    assert_eq!(frame(&mut cpu, 4, 2), [0x12, 0x50]);
}

#[test]
fn vme_redirects_software_interrupts() {
    let mut cpu = protected();
    cpu.poke(IDT + 0x21 * 8, 8, gate(CODE0, 0x1000, 0xee, 0));
    cpu.cr4 |= control::CR4_VME;
    cpu.segments[seg::TR].limit = 0xff;
    cpu.poke(TSS + 0x66, 2, 0x88);
    cpu.poke(TSS + 0x68 + 4, 1, 2);
    cpu.poke(0x20 * 4, 4, 0x0070_0080);
    for number in [seg::CS, seg::SS] {
        cpu.segments[number] = segments::virtual_8086_segment(0x100);
    }
    (cpu.cpl, cpu.rip, cpu.gpr[reg::RSP]) = (3, 0x10, 0x100);
    cpu.rflags = 2 | flag::VM | flag::VIF | flag::IF;
    cpu.run(&[0xcd, 0x20]).unwrap();
    assert_eq!((cpu.rip, selector(&cpu, seg::CS), cpu.cpl), (0x80, 0x70, 3));
    assert_eq!(frame(&mut cpu, 2, 3), [0x12, 0x100, 0x3202]);
    assert_eq!(cpu.rflags, 2 | flag::VM | flag::IF);
    cpu.run(IRET).unwrap();
    assert_eq!((cpu.rip, cpu.rflags), (0x12, 2 | flag::VM | flag::VIF | flag::IF));
    assert_eq!(cpu.run(&[0xcd, 0x21]), Err(Exception::gp(0)));
}

#[test]
fn long_mode_delivery_aligns_and_uses_the_interrupt_stack_table() {
    let mut cpu = long();
    let handler = 0xffff_8000_1234_5678;
    long_gate(&mut cpu, 14, LONG0, handler, 0x8e, 0);
    long_gate(&mut cpu, 2, LONG0, 0x2222, 0x8e, 1);
    go_long(&mut cpu, 3);
    cpu.gpr[reg::RSP] = 0x9005;
    cpu.rflags = 0x202;
    deliver_exception(&mut cpu, Exception::page_fault(0x7fff_1234, 6));
    assert_eq!((cpu.cpl, cpu.rip, cpu.cr2, cpu.gpr[reg::RSP]), (0, handler, 0x7fff_1234, 0x7000 - 48));
    let expected = [6, 0x6000, u64::from(LONG3), 0x202 | flag::RF, 0x9005, u64::from(DATA3)];
    assert_eq!(frame(&mut cpu, 8, 6), expected);
    assert_eq!((selector(&cpu, seg::SS), selector(&cpu, seg::CS), cpu.rflags), (0, LONG0, 2));
    assert_ne!(cpu.segments[seg::SS].access & Segment::UNUSABLE, 0);
    // NMI on its own stack at the same level: SS stays.
    cpu.rflags |= flag::IF;
    deliver(&mut cpu, Event::nmi());
    assert!(cpu.nmi_blocked);
    assert_eq!((cpu.rip, cpu.gpr[reg::RSP]), (0x2222, 0x7800 - 40));
    assert_eq!(frame(&mut cpu, 8, 5), [handler, u64::from(LONG0), 0x202, 0x7000 - 48, 0]);
    cpu.run(IRETQ).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[reg::RSP], cpu.nmi_blocked), (handler, 0x7000 - 48, false));
    cpu.gpr[reg::RSP] += 8;
    cpu.run(IRETQ).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP]), (3, 0x6000, 0x9005));
    assert_eq!(cpu.rflags, 0x202 | flag::RF);
    assert_eq!(selector(&cpu, seg::SS), DATA3);
}

#[test]
fn long_mode_refuses_what_it_has_not() {
    let mut cpu = long();
    // A 16-bit gate, a 32-bit handler, a handler that is not canonical.
    for (vector, selector, offset, access, error) in [
        (0x20, LONG0, 0x1000, 0x86, 0x20 * 8 + 3),
        (0x21, CODE0, 0x1000, 0x8e, u64::from(CODE0) | 1),
        (0x22, LONG0, 1 << 47, 0x8e, 1),
    ] {
        long_gate(&mut cpu, 13, LONG0, 0x4444, 0x8e, 0);
        long_gate(&mut cpu, vector, selector, offset, access, 0);
        deliver(&mut cpu, Event::external(vector as u8));
        assert_eq!(cpu.rip, 0x4444);
        assert_eq!(frame(&mut cpu, 8, 1), [error]);
    }
    cpu.rflags |= flag::NT;
    assert_eq!(cpu.run(IRETQ), Err(Exception::gp(0)));
}

#[test]
fn far_transfers_go_to_code_segments() {
    let mut cpu = protected();
    // jmp 0x08:0x12345678; call; ret.
    cpu.run(&[0xea, 0x78, 0x56, 0x34, 0x12, 0x08, 0x00]).unwrap();
    assert_eq!(cpu.rip, 0x1234_5678);
    cpu.run(&[0x9a, 0x00, 0x10, 0x00, 0x00, 0x08, 0x00]).unwrap();
    assert_eq!(frame(&mut cpu, 4, 2), [0x1234_567f, u64::from(CODE0)]);
    cpu.run(&[0xca, 0x08, 0x00]).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[reg::RSP]), (0x1234_567f, STACK0 + 8));
    let wrong = |cpu: &mut Cpu, selector: u16, error: Exception| {
        let [low, high] = selector.to_le_bytes();
        assert_eq!(cpu.run(&[0xea, 0, 0, 0, 0, low, high]), Err(error));
    };
    wrong(&mut cpu, 0, Exception::gp(0));
    wrong(&mut cpu, CODE3, Exception::gp(0x18));
    wrong(&mut cpu, DATA0, Exception::gp(0x10));
    wrong(&mut cpu, 0x108, Exception::gp(0x108));
    cpu.set_descriptor(FREE, descriptor(0, 0xfff, 0x1a));
    wrong(&mut cpu, FREE, Exception::with(vector::NP, u32::from(FREE)));
    cpu.set_descriptor(FREE, descriptor(0, 0xfff, 0x9a));
    let [low, high] = FREE.to_le_bytes();
    assert_eq!(cpu.run(&[0xea, 0, 0x10, 0, 0, low, high]), Err(Exception::gp(0)));
    // To a 16-bit segment, and the accessed bit.
    cpu.run(&[0xea, 0xff, 0x0f, 0, 0, low, high]).unwrap();
    assert_eq!((cpu.bitness(), cpu.rip), (16, 0xfff));
    assert_eq!(cpu.look(GDT + u64::from(FREE) + 5, 1), 0x9b);
}

#[test]
fn a_call_gate_copies_parameters_and_retf_drops_them() {
    let mut cpu = protected();
    cpu.set_descriptor(FREE, gate(CODE0, 0x1_5000, 0xec, 2));
    cpu.at_level(3);
    cpu.push(4, 0x1111).unwrap();
    cpu.push(4, 0x2222).unwrap();
    let sp = cpu.gpr[reg::RSP];
    let [low, high] = (FREE | 3).to_le_bytes();
    cpu.run(&[0x9a, 0, 0, 0, 0, low, high]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP]), (0, 0x1_5000, 0x7000 - 24));
    assert_eq!(frame(&mut cpu, 4, 6), [0x6007, u64::from(CODE3), 0x2222, 0x1111, sp, u64::from(DATA3)]);
    cpu.run(&[0xca, 0x08, 0x00]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP]), (3, 0x6007, STACK3));
    // JMP can't go inwards, and a gate of DPL 0 is not for level 3.
    assert_eq!(cpu.run(&[0xea, 0, 0, 0, 0, low, high]), Err(Exception::gp(u32::from(CODE0))));
    cpu.set_descriptor(FREE, gate(CODE0, 0x1_5000, 0x8c, 2));
    assert_eq!(cpu.run(&[0x9a, 0, 0, 0, 0, low, high]), Err(Exception::gp(u32::from(FREE))));
}

#[test]
fn a_call_gate_of_long_mode_has_16_bytes() {
    let mut cpu = long();
    cpu.set_descriptor(FREE, gate(LONG0, 0x1000, 0xec, 0));
    cpu.set_descriptor(FREE + 8, 0xffff_8000);
    go_long(&mut cpu, 3);
    cpu.poke(0x5000, 8, 0);
    cpu.poke(0x5004, 2, u64::from(FREE | 3));
    // call far [0x5000]
    cpu.run(&[0xff, 0x1c, 0x25, 0x00, 0x50, 0, 0]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP]), (0, 0xffff_8000_0000_1000, 0x7000 - 32));
    assert_eq!(frame(&mut cpu, 8, 4), [0x6007, u64::from(LONG3), STACK3, u64::from(DATA3)]);
    assert_eq!(selector(&cpu, seg::SS), 0);
    cpu.run(&[0x48, 0xcb]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP]), (3, 0x6007, STACK3));
    cpu.set_descriptor(FREE + 8, 0x0c00_ffff_8000);
    assert!(cpu.run(&[0xff, 0x1c, 0x25, 0x00, 0x50, 0, 0]).is_err());
}

/// A second 32-bit TSS at 0x4000, selector [`FREE`].
fn second_task(cpu: &mut Cpu) {
    cpu.set_descriptor(FREE, descriptor(0x4000, 0x67, 0x89));
    for (at, value) in [(0x20, 0xabcd), (0x24, 2), (0x28, 0x1111), (0x38, 0x9800), (0x4c, u64::from(CODE0))] {
        cpu.poke(0x4000 + at, 4, value);
    }
    for at in [0x48, 0x50, 0x54, 0x58, 0x5c] {
        cpu.poke(0x4000 + at, 4, u64::from(DATA0));
    }
}

#[test]
fn tasks_switch_nest_and_return() {
    let mut cpu = protected();
    second_task(&mut cpu);
    (cpu.gpr[reg::RAX], cpu.rflags) = (0x5555, 0x46);
    let [low, high] = FREE.to_le_bytes();
    cpu.run(&[0x9a, 0, 0, 0, 0, low, high]).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[reg::RAX], cpu.gpr[reg::RSP]), (0xabcd, 0x1111, 0x9800));
    assert_eq!((cpu.rflags, selector(&cpu, seg::TR)), (2 | flag::NT, FREE));
    assert_ne!(cpu.cr0 & control::CR0_TS, 0);
    assert_eq!(
        [cpu.look(TSS + 0x20, 4), cpu.look(TSS + 0x24, 4), cpu.look(TSS + 0x28, 4)],
        [0x6007, 0x46, 0x5555]
    );
    assert_eq!([cpu.look(TSS + 0x38, 4), cpu.look(TSS + 0x4c, 4)], [STACK0, u64::from(CODE0)]);
    assert_eq!(cpu.look(0x4000, 2), u64::from(TASK));
    let busy = |cpu: &mut Cpu, selector: u16| cpu.look(GDT + u64::from(selector) + 5, 1) & 2 != 0;
    assert_eq!([busy(&mut cpu, TASK), busy(&mut cpu, FREE)], [true, true]);
    // A busy task can't be entered.
    assert_eq!(cpu.run(&[0xea, 0, 0, 0, 0, low, high]), Err(Exception::gp(u32::from(FREE))));
    cpu.run(IRET).unwrap();
    assert_eq!(
        (cpu.rip, cpu.gpr[reg::RAX], cpu.rflags, selector(&cpu, seg::TR)),
        (0x6007, 0x5555, 0x46, TASK)
    );
    assert_eq!([busy(&mut cpu, TASK), busy(&mut cpu, FREE)], [true, false]);
    // What it left: EIP after IRET, NT clear.
    assert_eq!([cpu.look(0x4020, 4), cpu.look(0x4024, 4)], [0xabce, 2]);
    cpu.run(&[0xea, 0, 0, 0, 0, low, high]).unwrap();
    assert_eq!([busy(&mut cpu, TASK), busy(&mut cpu, FREE)], [false, true]);
    assert_eq!(cpu.rflags, 2);
}

#[test]
fn a_task_gate_takes_a_double_fault() {
    let mut cpu = protected();
    second_task(&mut cpu);
    cpu.poke(IDT + 8 * 8, 8, gate(FREE, 0, 0x85, 0));
    cpu.at_level(3);
    cpu.segments[seg::TR].limit = 3;
    // No stack for level 0 in this TSS: #GP, #TS, #DF through the task gate.
    cpu.poke(IDT + 13 * 8, 8, gate(CODE0, 0x4444, 0x8e, 0));
    deliver_exception(&mut cpu, Exception::gp(0));
    assert_eq!((cpu.cpl, cpu.rip, selector(&cpu, seg::TR)), (0, 0xabcd, FREE));
    assert_eq!(frame(&mut cpu, 4, 1), [0]);
    assert_eq!(cpu.look(TSS + 0x20, 4), 0x6000);
}

#[test]
fn a_fault_in_the_new_task_is_the_new_tasks() {
    let mut cpu = protected();
    second_task(&mut cpu);
    cpu.poke(0x4000 + 0x50, 4, u64::from(CODE0));
    cpu.poke(IDT + 10 * 8, 8, gate(CODE0, 0xaaaa, 0x8e, 0));
    let [low, high] = FREE.to_le_bytes();
    // SS is bad, so there is no stack for #TS either.
    assert_eq!(cpu.run(&[0xea, 0, 0, 0, 0, low, high]), Ok(Flow::Jump));
    assert_eq!((cpu.activity, selector(&cpu, seg::TR)), (Activity::Shutdown, FREE));
    let mut cpu = protected();
    second_task(&mut cpu);
    cpu.poke(0x4000 + 0x54, 4, 0x108);
    cpu.poke(IDT + 10 * 8, 8, gate(CODE0, 0xaaaa, 0x8e, 0));
    cpu.run(&[0xea, 0, 0, 0, 0, low, high]).unwrap();
    assert_eq!((cpu.rip, selector(&cpu, seg::TR)), (0xaaaa, FREE));
    assert_eq!(frame(&mut cpu, 4, 2), [0x108, 0xabcd]);
}

#[test]
fn a_16_bit_task() {
    let mut cpu = protected();
    cpu.set_descriptor(FREE, descriptor(0x4000, 0x2b, 0x81));
    for (at, value) in [(0x0e, 0x123), (0x10, 2), (0x12, 0x77), (0x1a, 0x4000), (0x24, CODE0), (0x26, DATA0)]
    {
        cpu.poke(0x4000 + at, 2, u64::from(value));
    }
    let [low, high] = FREE.to_le_bytes();
    cpu.run(&[0x9a, 0, 0, 0, 0, low, high]).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[reg::RAX] & 0xffff, cpu.gpr[reg::RSP] & 0xffff), (0x123, 0x77, 0x4000));
    assert_eq!((selector(&cpu, seg::FS), selector(&cpu, seg::DS)), (0, 0));
    cpu.gpr[reg::RAX] = 0x8888;
    cpu.run(IRET).unwrap();
    assert_eq!((cpu.rip, selector(&cpu, seg::FS), cpu.gpr[reg::RSP]), (0x6007, DATA0, STACK0));
    assert_eq!([cpu.look(0x4012, 2), cpu.look(0x400e, 2)], [0x8888, 0x124]);
}

#[test]
fn syscall_and_sysret() {
    let mut cpu = long();
    go_long(&mut cpu, 3);
    (cpu.msr.star, cpu.msr.lstar, cpu.msr.fmask) =
        (0x0033_0008 << 32, 0xffff_8000_0000_0100, flag::IF | flag::TF);
    cpu.rflags = 0x246 | flag::RF | flag::TF;
    cpu.run(&[0x0f, 0x05]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RCX], cpu.gpr[11]), (0, 0xffff_8000_0000_0100, 0x6002, 0x346));
    assert_eq!((cpu.rflags, selector(&cpu, seg::CS), selector(&cpu, seg::SS)), (0x46, 8, 16));
    assert!(cpu.code64());
    cpu.run(&[0x48, 0x0f, 0x07]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.rflags), (3, 0x6002, 0x346));
    assert_eq!((selector(&cpu, seg::CS), selector(&cpu, seg::SS)), (0x43, 0x3b));
    assert_eq!(cpu.run(&[0x48, 0x0f, 0x07]), Err(Exception::gp(0)));
    cpu.run(&[0x0f, 0x05]).unwrap();
    cpu.gpr[reg::RCX] = 1 << 47;
    assert_eq!(cpu.run(&[0x48, 0x0f, 0x07]), Err(Exception::gp(0)));
    // To compatibility mode.
    cpu.run(&[0x0f, 0x07]).unwrap();
    assert_eq!((selector(&cpu, seg::CS), cpu.bitness(), cpu.rip), (0x33, 32, 0));
    // Where Intel has no SYSCALL and AMD has.
    assert_eq!(cpu.run(&[0x0f, 0x05]), Err(Exception::ud()));
    cpu.efer &= !control::EFER_SCE;
    assert_eq!(cpu.run(&[0x0f, 0x05]), Err(Exception::ud()));
    let mut amd = cpu_of(0x6874_7541);
    set_up(&mut amd);
    amd.at_level(3);
    (amd.efer, amd.msr.star, amd.rflags) = (control::EFER_SCE, 0x0013_0008_0000_4000, 0x202);
    amd.run(&[0x0f, 0x05]).unwrap();
    assert_eq!((amd.cpl, amd.rip, amd.gpr[reg::RCX], amd.rflags), (0, 0x4000, 0x6002, 2));
    amd.run(&[0x0f, 0x07]).unwrap();
    assert_eq!((amd.cpl, amd.rip, amd.rflags, selector(&amd, seg::CS)), (3, 0x6002, 0x202, 0x13));
}

#[test]
fn sysenter_and_sysexit() {
    let mut cpu = protected();
    assert_eq!(cpu.run(&[0x0f, 0x34]), Err(Exception::gp(0)));
    cpu.msr.sysenter = [0x8, 0x7000, 0x4000];
    cpu.at_level(3);
    cpu.rflags = 0x202;
    cpu.run(&[0x0f, 0x34]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP], cpu.rflags), (0, 0x4000, 0x7000, 2));
    (cpu.gpr[reg::RCX], cpu.gpr[reg::RDX]) = (0x9000, 0x6002);
    cpu.run(&[0x0f, 0x35]).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[reg::RSP]), (3, 0x6002, 0x9000));
    assert_eq!((selector(&cpu, seg::CS), selector(&cpu, seg::SS)), (0x1b, 0x23));
    go_long(&mut cpu, 3);
    cpu.msr.sysenter[2] = 0xffff_8000_0000_0000;
    cpu.run(&[0x0f, 0x34]).unwrap();
    assert!(cpu.code64() && cpu.rip == 0xffff_8000_0000_0000);
    cpu.run(&[0x48, 0x0f, 0x35]).unwrap();
    assert_eq!((selector(&cpu, seg::CS), selector(&cpu, seg::SS), cpu.bitness()), (0x2b, 0x33, 64));
}

#[test]
fn segment_loads_check_and_mark() {
    let mut cpu = protected();
    // mov ds, ax
    let load = |cpu: &mut Cpu, selector: u16| {
        cpu.gpr[reg::RAX] = u64::from(selector);
        cpu.run(&[0x8e, 0xd8])
    };
    assert_eq!(load(&mut cpu, CODE3), Ok(Flow::Next));
    assert_eq!(cpu.look(GDT + u64::from(CODE3 & !7) + 5, 1), 0xfb);
    assert_eq!(load(&mut cpu, TASK), Err(Exception::gp(u32::from(TASK))));
    assert_eq!(load(&mut cpu, DATA0 | 3), Err(Exception::gp(u32::from(DATA0))));
    assert_eq!(load(&mut cpu, DATA0 | 4), Err(Exception::gp(u32::from(DATA0 | 4))));
    cpu.set_descriptor(FREE, descriptor(0x12_3456, 0x10, 0x12 | Segment::GRANULAR));
    assert_eq!(load(&mut cpu, FREE), Err(Exception::with(vector::NP, u32::from(FREE))));
    cpu.set_descriptor(FREE, descriptor(0x1234_5678, 0x10, 0x92 | Segment::GRANULAR));
    assert_eq!(load(&mut cpu, FREE), Ok(Flow::Next));
    let expected = Segment { base: 0x1234_5678, limit: 0x1_0fff, access: 0x8093, selector: FREE };
    assert_eq!(cpu.segments[seg::DS], expected);
    assert_eq!(load(&mut cpu, 3), Ok(Flow::Next));
    assert_eq!(cpu.linear_address(seg::DS, 0, 1, false), Err(Exception::gp(0)));
    // mov ss, ax
    cpu.gpr[reg::RAX] = u64::from(DATA0);
    assert_eq!(cpu.run(&[0x8e, 0xd0]), Ok(Flow::Next));
    assert!(cpu.shadow);
    for (selector, error) in [(0, Exception::gp(0)), (DATA3, Exception::gp(0x20)), (CODE0, Exception::gp(8))]
    {
        cpu.gpr[reg::RAX] = u64::from(selector);
        assert_eq!(cpu.run(&[0x8e, 0xd0]), Err(error));
    }
    cpu.set_descriptor(FREE, descriptor(0, 0x10, 0x12));
    cpu.gpr[reg::RAX] = u64::from(FREE);
    assert_eq!(cpu.run(&[0x8e, 0xd0]), Err(Exception::with(vector::SS, u32::from(FREE))));
    // mov cs is none.
    assert_eq!(cpu.run(&[0x8e, 0xc8]), Err(Exception::ud()));
    go_long(&mut cpu, 0);
    cpu.gpr[reg::RAX] = 0;
    assert_eq!(cpu.run(&[0x8e, 0xd0]), Ok(Flow::Next));
}

#[test]
fn push_pop_and_far_pointers_of_segments() {
    let mut cpu = protected();
    // push ds; pop es; les eax, [0x5000]
    cpu.run(&[0x1e]).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], frame(&mut cpu, 4, 1)), (STACK0 - 4, vec![u64::from(DATA0)]));
    cpu.run(&[0x07]).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], selector(&cpu, seg::ES)), (STACK0, DATA0));
    cpu.push(4, u64::from(TASK)).unwrap();
    assert_eq!(cpu.run(&[0x07]), Err(Exception::gp(u32::from(TASK))));
    assert_eq!(cpu.gpr[reg::RSP], STACK0 - 4);
    cpu.poke(0x5000, 8, 0x1b_1234_5678);
    cpu.run(&[0xc4, 0x05, 0x00, 0x50, 0, 0]).unwrap();
    assert_eq!((cpu.gpr[reg::RAX], selector(&cpu, seg::ES)), (0x1234_5678, CODE3));
    // mov eax, ds clears the upper half.
    cpu.gpr[reg::RAX] = u64::MAX;
    cpu.run(&[0x8c, 0xd8]).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], u64::from(DATA0));
}

#[test]
fn bases_of_fs_and_gs() {
    let mut cpu = long();
    (cpu.msr.kernel_gs_base, cpu.segments[seg::GS].base) = (1, 2);
    cpu.run(&[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!((cpu.msr.kernel_gs_base, cpu.segments[seg::GS].base), (2, 1));
    // wrfsbase rax
    let wrfsbase = [0xf3, 0x48, 0x0f, 0xae, 0xd0];
    cpu.gpr[reg::RAX] = 0xffff_8000_0000_0000;
    assert_eq!(cpu.run(&wrfsbase), Err(Exception::ud()));
    cpu.cr4 |= control::CR4_FSGSBASE;
    cpu.run(&wrfsbase).unwrap();
    cpu.gpr[reg::RAX] = 1 << 47;
    assert_eq!(cpu.run(&wrfsbase), Err(Exception::gp(0)));
    cpu.run(&[0xf3, 0x48, 0x0f, 0xae, 0xc3]).unwrap();
    assert_eq!(cpu.gpr[reg::RBX], 0xffff_8000_0000_0000);
    cpu.cpl = 3;
    assert_eq!(cpu.run(&[0x0f, 0x01, 0xf8]), Err(Exception::gp(0)));
}

#[test]
fn table_registers_and_task_register() {
    let mut cpu = long();
    // lgdt [0x5000]; sgdt [0x5010]
    cpu.poke(0x5000, 2, 0x7f);
    cpu.poke(0x5002, 8, 0xffff_8000_0000_1000);
    cpu.run(&[0x0f, 0x01, 0x14, 0x25, 0x00, 0x50, 0, 0]).unwrap();
    assert_eq!((cpu.gdtr.base, cpu.gdtr.limit), (0xffff_8000_0000_1000, 0x7f));
    cpu.run(&[0x0f, 0x01, 0x04, 0x25, 0x10, 0x50, 0, 0]).unwrap();
    assert_eq!((cpu.look(0x5010, 2), cpu.look(0x5012, 8)), (0x7f, 0xffff_8000_0000_1000));
    cpu.gdtr.base = GDT;
    // ltr ax: 16 bytes, and becomes busy.
    cpu.set_descriptor(FREE, descriptor(0x4000, 0x67, 0x89));
    cpu.set_descriptor(FREE + 8, 0xffff_8000);
    cpu.gpr[reg::RAX] = u64::from(FREE);
    cpu.run(&[0x0f, 0x00, 0xd8]).unwrap();
    assert_eq!((cpu.segments[seg::TR].base, cpu.segments[seg::TR].access), (0xffff_8000_0000_4000, 0x8b));
    assert_eq!(cpu.run(&[0x0f, 0x00, 0xd8]), Err(Exception::gp(u32::from(FREE))));
    // lldt of a null selector and of something else; str.
    cpu.gpr[reg::RCX] = 0;
    cpu.run(&[0x0f, 0x00, 0xd1]).unwrap();
    assert_ne!(cpu.segments[seg::LDTR].access & Segment::UNUSABLE, 0);
    assert_eq!(cpu.run(&[0x0f, 0x00, 0xd0]), Err(Exception::gp(u32::from(FREE))));
    cpu.run(&[0x0f, 0x00, 0xc9]).unwrap();
    assert_eq!(cpu.gpr[reg::RCX], u64::from(FREE));
    cpu.cpl = 3;
    cpu.run(&[0x0f, 0x00, 0xc9]).unwrap();
    cpu.cr4 |= control::CR4_UMIP;
    assert_eq!(cpu.run(&[0x0f, 0x00, 0xc9]), Err(Exception::gp(0)));
    assert_eq!(cpu.run(&[0x0f, 0x00, 0xd8]), Err(Exception::gp(0)));
}

#[test]
fn looking_at_descriptors() {
    let mut cpu = protected();
    let zero = |cpu: &Cpu| cpu.rflags & flag::ZF != 0;
    // lar eax, cx / lsl eax, cx / verr cx / verw cx
    let mut ask = |selector: u16, bytes: &[u8]| {
        cpu.gpr[reg::RCX] = u64::from(selector);
        cpu.gpr[reg::RAX] = 0x1111;
        cpu.run(bytes).unwrap();
        zero(&cpu).then_some(cpu.gpr[reg::RAX])
    };
    assert_eq!(ask(CODE0, LAR), Some(0x00c0_9a00));
    assert_eq!(ask(CODE0, LSL), Some(0xffff_ffff));
    assert_eq!(ask(TASK, LAR), Some(0x8b00));
    assert_eq!(ask(TASK, LSL), Some(0x67));
    assert_eq!(ask(0, LAR), None);
    assert_eq!(ask(0x108, LSL), None);
    assert_eq!(ask(DATA0 | 3, LAR), None);
    assert!(ask(CODE0, &[0x0f, 0x00, 0xe1]).is_some());
    assert!(ask(CODE0, &[0x0f, 0x00, 0xe9]).is_none());
    assert!(ask(DATA0, &[0x0f, 0x00, 0xe9]).is_some());
    // arpl ax, cx
    (cpu.gpr[reg::RAX], cpu.gpr[reg::RCX]) = (0x10, 3);
    cpu.run(&[0x63, 0xc8]).unwrap();
    assert_eq!((cpu.gpr[reg::RAX], zero(&cpu)), (0x13, true));
    cpu.run(&[0x63, 0xc8]).unwrap();
    assert!(!zero(&cpu));
    cpu.cr0 &= !control::CR0_PE;
    assert_eq!(cpu.run(LAR), Err(Exception::ud()));
}

#[test]
fn a_stack_of_32_bits_or_16_keeps_what_it_should() {
    let mut cpu = protected();
    cpu.gpr[reg::RSP] = 2;
    cpu.poke(0, 4, 0);
    assert_eq!(cpu.push(4, 1), Err(Exception::with(vector::SS, 0)));
    assert_eq!(cpu.gpr[reg::RSP], 2);
    cpu.segments[seg::SS].access &= !Segment::BIG;
    cpu.segments[seg::SS].limit = 0xffff;
    cpu.gpr[reg::RSP] = 0xabcd_0000;
    cpu.push(4, 0x77).unwrap();
    assert_eq!((cpu.gpr[reg::RSP], cpu.look(0xfffc, 4)), (0xabcd_fffc, 0x77));
    assert_eq!(cpu.pop(4), Ok(0x77));
    assert_eq!(cpu.gpr[reg::RSP], 0xabcd_0000);
}

#[test]
fn a_page_fault_on_the_handlers_stack_is_a_double_fault() {
    let mut cpu = long();
    long_gate(&mut cpu, 8, LONG0, 0x8888, 0x8e, 1);
    long_gate(&mut cpu, 14, LONG0, 0xeeee, 0x8e, 0);
    long_gate(&mut cpu, 6, LONG0, 0x6666, 0x8e, 0);
    // Identity-map all but page 0x9000 (which holds the stack).
    cpu.poke(0x10000, 8, 0x11003);
    cpu.poke(0x11000, 8, 0x12003);
    cpu.poke(0x12000, 8, 0x13003);
    for page in (0..256).filter(|&p| p != 9) {
        cpu.poke(0x13000 + page * 8, 8, page << 12 | 3);
    }
    cpu.cr3 = 0x10000;
    cpu.cr4 |= control::CR4_PAE;
    cpu.cr0 |= control::CR0_PG;
    cpu.gpr[reg::RSP] = 0xa000;
    let event = Event { vector: 6, error: None, address: None, kind: Kind::Exception };
    deliver(&mut cpu, event);
    // #UD can't be pushed: #PF, which can't be either: #DF on its own stack.
    assert_eq!((cpu.rip, cpu.cr2, cpu.gpr[reg::RSP]), (0x8888, 0x9ff8, 0x7800 - 48));
    assert_eq!(frame(&mut cpu, 8, 5)[..2], [0, 0x6000]);
}

/// Instructions of this half of the system side: the operand bytes follow.
const FORMS: &[&[u8]] = &[
    &[0x8e],
    &[0x8c],
    &[0x07],
    &[0x17],
    &[0x1f],
    &[0x0f, 0xa1],
    &[0x0f, 0xa9],
    &[0x0f, 0xa0],
    &[0x1e],
    &[0xc4],
    &[0xc5],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x0f, 0xb5],
    &[0xcf],
    &[0x48, 0xcf],
    &[0x66, 0xcf],
    &[0xcb],
    &[0x48, 0xcb],
    &[0x66, 0xcb],
    &[0xca],
    &[0x9a],
    &[0xea],
    &[0xff],
    &[0x48, 0xff],
    &[0xcd],
    &[0xcc],
    &[0xce],
    &[0xf1],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x63],
    &[0x0f, 0x05],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
];

/// Mostly values that mean something here: small ones and selectors.
fn meaningful(random: &mut Random) -> u64 {
    let v = random.next();
    match v >> 60 {
        0..6 => v & 0xfb,
        6..12 => v & 0xfff8 | (3 * (v >> 32 & 1)),
        12 => v & 0xffff_ffff,
        13 => u64::MAX - (v & 0xff),
        _ => v,
    }
}

/// Whatever the tables hold, nothing panics, and an instruction that faults has changed nothing.
#[test]
fn faulting_instructions_have_no_effect() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut faults = 0;
    for round in 0..20 {
        let mut cpu = if round % 2 == 0 { protected() } else { long() };
        let wild = [0x80u64, 0x9a, 0xf2, 0xfa, 0x89, 0xe9, 0xec, 0xe5, 0x82, 0xee, 0x8f, 0x81, 0xe4];
        for _ in 0..4000 {
            for base in [GDT + 0x48, IDT] {
                let at = base + random.next() % 16 * 8;
                let access = wild[(random.next() % 13) as usize]
                    ^ if random.next().is_multiple_of(4) { random.next() & 0xff } else { 0 };
                let value = meaningful(&mut random) & 0xffff
                    | meaningful(&mut random) << 16 & 0xffff_0000
                    | meaningful(&mut random) << 48;
                cpu.poke(at, 8, value & !(0xff << 40) | access << 40);
            }
            let sp = 0x8000 + random.next() % 0x1000;
            for i in 0..9 {
                let value = meaningful(&mut random);
                cpu.poke(sp + i * 4, 4, value);
            }
            let size = 1 + (random.next() % 8) as usize;
            let value = meaningful(&mut random);
            cpu.poke(TSS + random.next() % 0x68, size, value);
            for register in &mut cpu.gpr {
                *register = meaningful(&mut random);
            }
            (cpu.gpr[reg::RSP], cpu.rip) = (sp, 0x6000);
            cpu.rflags = random.next()
                & 0x3f_7fd5
                & !(flag::VM | if random.next().is_multiple_of(8) { 0 } else { flag::NT })
                | 2;
            match random.next() % 4 {
                0 => cpu.at_level(3),
                1 if round % 2 == 1 => go_long(&mut cpu, (random.next() % 2 * 3) as u8),
                2 if round % 4 == 2 => (cpu.cr0, cpu.cpl) = (cpu.cr0 & !control::CR0_PE, 0),
                _ => cpu.at_level(0),
            }
            cpu.gpr[reg::RSP] = sp;
            let mut bytes = FORMS[(random.next() % FORMS.len() as u64) as usize].to_vec();
            bytes.extend(meaningful(&mut random).to_le_bytes());
            let before = (cpu.gpr, cpu.rip, cpu.rflags, cpu.segments, cpu.cpl, cpu.gdtr, cpu.idtr);
            if cpu.run(&bytes).is_err() {
                faults += 1;
                let after = (cpu.gpr, cpu.rip, cpu.rflags, cpu.segments, cpu.cpl, cpu.gdtr, cpu.idtr);
                assert_eq!(before, after, "{bytes:x?}");
            }
            if random.next().is_multiple_of(4) {
                deliver(&mut cpu, Event::external(random.next() as u8 & 31));
            }
            set_up(&mut cpu);
            cpu.activity = Activity::Running;
            if round % 2 == 1 {
                go_long(&mut cpu, 0);
            }
        }
    }
    assert!((1000..70_000).contains(&faults), "{faults}");
}
