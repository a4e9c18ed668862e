//! What happens when translated code leaves.

use engine::{Event, Stop, seg};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use super::SoftVcpu;
use crate::cache::{ExitKind, Site};
use crate::cpu::{Activity, control, flag};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::{self, Filled};
use crate::system::features::canonical;
use crate::system::{self, Flow};
use crate::translate::Mode;
use crate::translate::classify::{Class, Unit, classify};

/// DR6.BS: a single step (Intel SDM vol. 3, 17.2.3).
const DR6_BS: u64 = 1 << 14;

impl SoftVcpu {
    /// Runs guest code until an exit has been dealt with.
    pub(super) fn execute(&mut self) -> Option<Stop> {
        let trap = self.cpu.rflags & flag::TF != 0;
        let step = self.cpu.shadow || trap;
        let mode = Mode::of(&self.cpu, step);
        let target = match self.quick(mode) {
            Some(target) => target,
            None => match self.find_block(mode) {
                Ok(number) => self.cache.address(self.cache.block(number).checked),
                Err(exception) => {
                    self.raise(exception);
                    return None;
                }
            },
        };
        // Cleared before the instruction runs: STI and MOV SS set it anew.
        self.cpu.shadow = false;
        let result = self.run_code(target, mode);
        match result {
            Ok(Outcome::Done) if trap => self.single_step(),
            Ok(Outcome::Done | Outcome::Entered | Outcome::Again) => {}
            Ok(Outcome::Stop(stop)) => return Some(stop),
            Err(exception) => self.raise(exception),
        }
        None
    }

    /// After an instruction with RFLAGS.TF.
    pub(super) fn single_step(&mut self) {
        self.cpu.dr[6] |= DR6_BS;
        self.raise(Exception::plain(vector::DB));
    }

    pub(super) fn run_code(&mut self, mut target: u64, mode: Mode) -> Exec<Outcome> {
        loop {
            self.enter(target);
            let argument = self.cpu.jit.exit_arg;
            let Some(kind) = ExitKind::from_number(self.cpu.jit.exit_kind) else {
                return Ok(Outcome::Stop(self.unhandled("unknown exit")));
            };
            match kind {
                ExitKind::Miss => match self.miss(self.cache.site(argument), mode)? {
                    Some(retry) => target = retry,
                    None => return Ok(Outcome::Done),
                },
                ExitKind::Chain => {
                    self.chain(argument, mode)?;
                    return Ok(Outcome::Done);
                }
                ExitKind::Indirect => {
                    self.cpu.rip = self.cpu.jit.value;
                    return Ok(Outcome::Done);
                }
                ExitKind::Recheck => {
                    self.cpu.rip = self.cache.block(argument).rip;
                    self.recheck(mode)?;
                    return Ok(Outcome::Again);
                }
                ExitKind::System => {
                    return self.system_site(argument);
                }
                ExitKind::Bounce => {
                    let site = self.cache.system(argument);
                    self.cpu.rip = site.rip;
                    self.bounce(&site.insn)?;
                    return Ok(Outcome::Done);
                }
                ExitKind::Fault => return Err(self.fault(argument)),
                ExitKind::Done => return Ok(Outcome::Stop(self.unhandled("bounced code out of place"))),
            }
        }
    }

    fn unhandled(&self, what: &'static str) -> Stop {
        Stop::Unhandled { rip: self.cpu.rip, what }
    }

    /// A direct jump: links it to its target. In step mode nothing is linked, so that every
    /// instruction comes back here.
    fn chain(&mut self, exit: u32, mode: Mode) -> Exec<()> {
        self.cpu.rip = self.cache.exit(exit).target;
        if mode.step() {
            return Ok(());
        }
        let epoch = self.epoch;
        let number = self.find_block(mode)?;
        if epoch == self.epoch {
            self.cache.link(exit, number);
        }
        Ok(())
    }

    /// A failed entry check: makes the TLB know the page that CS:RIP is on now.
    fn recheck(&mut self, mode: Mode) -> Exec<()> {
        self.find_block(mode).map(|_| ())
    }

    /// A TLB miss: where to try again, or `None` once the instruction was done another way.
    fn miss(&mut self, site: Site, mode: Mode) -> Exec<Option<u64>> {
        let linear = self.cpu.jit.value;
        self.cpu.counters.count(Event::NestedFault);
        self.cpu.rip = site.rip;
        if canonical(linear) || !mode.is64() {
            let class = mode.class();
            let crosses = linear % memory::PAGE_SIZE + u64::from(site.size) > memory::PAGE_SIZE;
            if !crosses && mmu::fill_tlb(&mut self.cpu, linear, site.write, class)? == Filled::Ram {
                let entry = self.cpu.tlb.entry(class, linear);
                let tag = if site.write { entry.write } else { entry.read };
                if linear & !(memory::PAGE_SIZE - 1) == tag {
                    return Ok(Some(self.cache.address(site.retry)));
                }
            }
        }
        // Not RAM, two pages, translated code, or a fault: one instruction the slow way.
        let insn = self.decode()?;
        match classify(&insn) {
            Class::Native(_) | Class::BitString => self.bounce(&insn)?,
            _ => {
                let (flow, _) = system::execute(&mut self.cpu, &insn);
                self.flow(&insn, flow?);
            }
        }
        Ok(None)
    }

    /// Decodes the instruction at CS:RIP.
    fn decode(&mut self) -> Exec<Instruction> {
        let mut bytes = [0; 15];
        let base = if self.cpu.code64() { 0 } else { self.cpu.segments[seg::CS].base };
        let linear = base.wrapping_add(self.cpu.rip);
        let fetched = mmu::fetch(&mut self.cpu, linear, &mut bytes);
        let mut decoder =
            Decoder::with_ip(self.cpu.bitness(), &bytes[..fetched.len], self.cpu.rip, DecoderOptions::NONE);
        let insn = decoder.decode();
        match fetched.fault {
            Some(fault) if insn.is_invalid() => Err(fault),
            _ => Ok(insn),
        }
    }

    /// A system instruction.
    fn system_site(&mut self, number: u32) -> Exec<Outcome> {
        let site = self.cache.system(number);
        self.cpu.rip = site.rip;
        if site.disabled
            && let Class::Native(unit) = classify(&site.insn)
        {
            return Err(self.unit_fault(&site.insn, unit));
        }
        if let Some(event) = counted(&site.insn) {
            self.cpu.counters.count(event);
        }
        let known = site.topic.and_then(|topic| topic(&mut self.cpu, &site.insn));
        let result = if let Some(result) = known {
            result
        } else {
            let epoch = self.epoch;
            let (result, topic) = system::execute(&mut self.cpu, &site.insn);
            if let Some(topic) = topic
                && epoch == self.epoch
            {
                self.cache.set_topic(number, topic);
            }
            result
        };
        Ok(self.flow(&site.insn, result?))
    }

    /// Goes on after a system instruction.
    fn flow(&mut self, insn: &Instruction, flow: Flow) -> Outcome {
        match flow {
            Flow::Next => self.cpu.rip = self.cpu.next_rip(insn),
            Flow::Jump => {
                let stepped = match insn.mnemonic() {
                    // They clear TF before anything could trap (Intel SDM vol. 3, 18.3.1.4).
                    Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => false,
                    // The mask of IA32_FMASK decides.
                    Mnemonic::Syscall => self.cpu.rflags & flag::TF != 0,
                    _ => true,
                };
                return if stepped { Outcome::Done } else { Outcome::Entered };
            }
            Flow::Again => return Outcome::Again,
            Flow::Halt => {
                self.cpu.rip = self.cpu.next_rip(insn);
                self.cpu.activity = Activity::Halted;
            }
            Flow::UnclaimedPort { port, write, size } => {
                return Outcome::Stop(Stop::UnclaimedPort { port, write, size });
            }
        }
        Outcome::Done
    }

    /// Why an instruction of `unit` may not run (Intel SDM vol. 3, tables 2-2 and 13-1).
    fn unit_fault(&self, insn: &Instruction, unit: Unit) -> Exception {
        let emulate = self.cpu.cr0 & control::CR0_EM != 0;
        let switched = self.cpu.cr0 & control::CR0_TS != 0;
        let mmx = (0..insn.op_count()).any(|i| insn.op_register(i).is_mm());
        match unit {
            Unit::X87 if mmx && emulate => Exception::ud(),
            Unit::X87 if insn.mnemonic() == Mnemonic::Wait && self.cpu.cr0 & control::CR0_MP == 0 => {
                Exception::ud()
            }
            Unit::X87 => Exception::plain(vector::NM),
            Unit::Sse if emulate || self.cpu.cr4 & control::CR4_OSFXSR == 0 => Exception::ud(),
            Unit::Avx if self.cpu.cr4 & control::CR4_OSXSAVE == 0 || self.cpu.xcr0 & 6 != 6 => {
                Exception::ud()
            }
            _ if switched => Exception::plain(vector::NM),
            _ => Exception::ud(),
        }
    }

    /// A host exception in translated code.
    pub(super) fn fault(&mut self, number: u32) -> Exception {
        let point = self.cache.offset(self.cpu.jit.fault_at).and_then(|at| self.cache.fault(at));
        if let Some(point) = point {
            self.cpu.rip = point.rip;
            if let Some(register) = point.spilled {
                self.cpu.gpr[usize::from(register)] = self.cpu.jit.spill;
            }
        }
        match number as u8 {
            vector::GP => Exception::gp(0),
            vector::AC => Exception::with(vector::AC, 0),
            other => Exception::plain(other),
        }
    }
}

/// What a system instruction counts as.
fn counted(insn: &Instruction) -> Option<Event> {
    Some(match insn.mnemonic() {
        Mnemonic::In
        | Mnemonic::Out
        | Mnemonic::Insb
        | Mnemonic::Insw
        | Mnemonic::Insd
        | Mnemonic::Outsb
        | Mnemonic::Outsw
        | Mnemonic::Outsd => Event::Port,
        Mnemonic::Cpuid => Event::Cpuid,
        Mnemonic::Rdmsr => Event::ReadMsr,
        Mnemonic::Wrmsr => Event::WriteMsr,
        Mnemonic::Hlt => Event::Hlt,
        Mnemonic::Mov if insn.op0_register().is_cr() || insn.op1_register().is_cr() => Event::ControlRegister,
        _ => return None,
    })
}

/// How guest code came back.
pub(super) enum Outcome {
    /// An instruction or more were completed.
    Done,
    /// A handler was entered by an instruction that no single-step trap follows.
    Entered,
    /// Nothing was completed since the last look.
    Again,
    /// `run` ends.
    Stop(Stop),
}
