use std::sync::{Arc, Mutex};

use bus::BusDevice;
use engine::reg;

use super::GP;
use crate::cpu::{Cpu, flag};
use crate::exception::vector;
use crate::system::Flow;
use crate::testing::*;

/// Counts up on reads, keeps writes.
#[derive(Default)]
struct Counter(Mutex<(u8, Vec<Vec<u8>>)>);

impl BusDevice for Counter {
    fn read(&self, _: u64, data: &mut [u8]) {
        let mut state = self.0.lock().unwrap();
        for byte in data {
            state.0 += 1;
            *byte = state.0;
        }
    }
    fn write(&self, _: u64, data: &[u8]) {
        self.0.lock().unwrap().1.push(data.to_vec());
    }
}

fn device(cpu: &Cpu) -> Arc<Counter> {
    let counter = Arc::new(Counter::default());
    cpu.shared.services.bus.claim_ports(0x60..0x64, counter.clone()).unwrap();
    counter
}

#[test]
fn registers_go_in_and_out() {
    let mut cpu = long();
    let counter = device(&cpu);
    cpu.gpr[reg::RAX] = 0xffff_ffff_ffff_ff00;
    cpu.run(&[0xe4, 0x60]).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], 0xffff_ffff_ffff_ff01);
    cpu.gpr[reg::RDX] = 0xdead_0060;
    cpu.run(&[0xed]).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], 0x0504_0302);
    cpu.run(&[0x66, 0xef]).unwrap();
    cpu.run(&[0xe6, 0x61]).unwrap();
    assert_eq!(counter.0.lock().unwrap().1, [vec![2, 3], vec![2]]);
    cpu.gpr[reg::RDX] = 0x500;
    cpu.run(&[0xed]).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], 0xffff_ffff, "nobody there");
}

#[test]
fn strings_go_in_and_out_both_ways() {
    let mut cpu = long();
    let counter = device(&cpu);
    cpu.gpr[reg::RDX] = 0x60;
    (cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]) = (0x4fff, 3);
    cpu.run(&[0xf3, 0x66, 0x6d]).unwrap();
    assert_eq!(cpu.look(0x4fff, 6), 0x0605_0403_0201);
    assert_eq!((cpu.gpr[reg::RDI], cpu.gpr[reg::RCX]), (0x5005, 0));
    cpu.rflags |= flag::DF;
    (cpu.gpr[reg::RSI], cpu.gpr[reg::RCX]) = (0x5001, 2);
    cpu.run(&[0xf3, 0x6e]).unwrap();
    assert_eq!(counter.0.lock().unwrap().1, [vec![3], vec![2]]);
    assert_eq!(cpu.gpr[reg::RSI], 0x4fff);
    // Nothing is taken from the port if it can't be stored.
    cpu.gpr[reg::RDI] = 1 << 62;
    assert_eq!(cpu.run(&[0x6c]), Err(GP));
    assert_eq!(counter.0.lock().unwrap().0, 6);
    // A long one lets interrupts in.
    cpu.rflags &= !flag::DF;
    (cpu.gpr[reg::RSI], cpu.gpr[reg::RCX]) = (0x8000, 5000);
    assert_eq!(cpu.run(&[0xf3, 0x6e]), Ok(Flow::Again));
    assert_eq!(cpu.gpr[reg::RSI] - 0x8000, 5000 - cpu.gpr[reg::RCX]);
    assert_eq!(cpu.run(&[0xf3, 0x6e]), Ok(Flow::Next));
}

#[test]
fn the_io_map_of_the_task_decides() {
    let mut cpu = protected();
    device(&cpu);
    cpu.at_level(3);
    cpu.poke(TSS + 0x66, 2, 0x68);
    assert_eq!(cpu.run(&[0xe4, 0x60]), Err(GP), "a map behind the limit");
    cpu.segments[engine::seg::TR].limit = 0x80;
    cpu.poke(TSS + 0x66, 2, 0x70);
    cpu.poke(TSS + 0x7c, 2, 0xf1);
    // Ports 60h–67h: 1 to 3 are free.
    assert_eq!(cpu.run(&[0xe4, 0x60]), Err(GP));
    cpu.run(&[0xe4, 0x61]).unwrap();
    cpu.run(&[0x66, 0xe5, 0x62]).unwrap();
    assert_eq!(cpu.run(&[0x66, 0xe5, 0x63]), Err(GP), "64h is not free");
    cpu.poke(TSS + 0x7d, 1, 0);
    cpu.poke(TSS + 0x7c, 1, 0x0f);
    cpu.gpr[reg::RDX] = 0x67;
    cpu.run(&[0x66, 0xed]).unwrap();
    cpu.gpr[reg::RDX] = 0x80;
    assert_eq!(cpu.run(&[0xec]), Err(GP), "the byte at the limit has no follower");
    cpu.rflags |= flag::IOPL;
    cpu.run(&[0xec]).unwrap();
    cpu.rflags |= flag::VM;
    assert_eq!(cpu.run(&[0xec]).map_err(|e| e.vector), Err(vector::GP), "IOPL does not matter there");
}

#[test]
fn unclaimed_ports_can_stop_the_machine() {
    let mut cpu = cpu_with(0x756e_6547, |config| config.strict_io = true);
    device(&cpu);
    let rip = cpu.rip;
    assert_eq!(cpu.run(&[0xe4, 0x70]), Ok(Flow::UnclaimedPort { port: 0x70, write: false, size: 1 }));
    assert_eq!(cpu.run(&[0xe7, 0x63]), Ok(Flow::UnclaimedPort { port: 0x63, write: true, size: 2 }));
    assert_eq!(cpu.rip, rip);
    assert_eq!(cpu.run(&[0xe4, 0x60]), Ok(Flow::Next));
}
