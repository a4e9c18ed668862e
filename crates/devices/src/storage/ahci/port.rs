//! One port: its registers, its commands, and what is at it (AHCI 1.3.1, 3.3 and 5).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host::block::{Op, submit_all};
use serde::{Deserialize, Serialize};

use super::command::Command;
use super::drive::{Drive, DriveState, Failed, Io, Outcome, Protocol};
use super::fis::{Reply, status};
use super::irq::Irq;
use crate::pci::{DmaError, DmaMemory};

/// Register offsets in a port.
mod register {
    pub const CLB: u64 = 0x00;
    pub const CLBU: u64 = 0x04;
    pub const FB: u64 = 0x08;
    pub const FBU: u64 = 0x0c;
    pub const IS: u64 = 0x10;
    pub const IE: u64 = 0x14;
    pub const CMD: u64 = 0x18;
    pub const TFD: u64 = 0x20;
    pub const SIG: u64 = 0x24;
    pub const SSTS: u64 = 0x28;
    pub const SCTL: u64 = 0x2c;
    pub const SERR: u64 = 0x30;
    pub const SACT: u64 = 0x34;
    pub const CI: u64 = 0x38;
}

/// Interrupt bits (3.3.5).
mod event {
    pub const REGISTERS: u32 = 1 << 0;
    pub const PIO_SETUP: u32 = 1 << 1;
    pub const DEVICE_BITS: u32 = 1 << 3;
    pub const CONNECT: u32 = 1 << 6;
    pub const PHY: u32 = 1 << 22;
    pub const BUS_FATAL: u32 = 1 << 29;
    pub const TASK_FILE: u32 = 1 << 30;
    /// Those that follow SERR and can't be cleared.
    pub const FROM_SERR: u32 = CONNECT | PHY;
    /// Those that can be enabled.
    pub const ALL: u32 = 0xfdc0_00ff;
}

/// Command and status bits (3.3.7).
mod cmd {
    pub const ST: u32 = 1 << 0;
    pub const SPIN_UP: u32 = 1 << 1;
    pub const POWER: u32 = 1 << 2;
    pub const CLO: u32 = 1 << 3;
    pub const FRE: u32 = 1 << 4;
    pub const SLOT_SHIFT: u32 = 8;
    pub const FR: u32 = 1 << 14;
    pub const CR: u32 = 1 << 15;
    pub const ATAPI: u32 = 1 << 24;
    pub const WRITABLE: u32 = ST | FRE | ATAPI;
}

/// SERR bits: PHY ready changed, device exchanged (3.3.12).
const SERR_PHY: u32 = 1 << 16;
const SERR_EXCHANGED: u32 = 1 << 26;
/// SSTS: a device, its link up at 6 Gbit/s, interface active (3.3.10).
const LINK_UP: u32 = 0x133;
/// SSTS: taken offline.
const LINK_OFF: u32 = 4;
/// DET field of SCTL: start a COMRESET; take the interface offline (3.3.11).
const DET: u32 = 0xf;
const DET_RESET: u32 = 1;
const DET_OFFLINE: u32 = 4;
/// Task file of a port that has heard nothing of a device.
const NO_DEVICE: u32 = 0x7f;
/// Commands that one register write may start before a thread of its own goes on.
const BUDGET: u32 = 256;

/// What a guest sees and a saved state holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    list: u64,
    area: u64,
    is: u32,
    ie: u32,
    cmd: u32,
    slot: u8,
    tfd: u32,
    sig: u32,
    sctl: u32,
    serr: u32,
    sact: u32,
    ci: u32,
    /// An error has stopped commands until ST is cleared.
    halted: bool,
    /// The signature waits for a place to go.
    signature_due: bool,
    drive: DriveState,
}

#[derive(Default)]
struct State {
    regs: Registers,
    /// A command that is not queued is with the disk.
    exclusive: bool,
    /// Queued commands that are with the disk.
    queued: u32,
    /// Requests that the disk has not answered, those of before a reset too.
    in_flight: u32,
    /// Counts stops and resets: answers to earlier commands are dropped.
    generation: u64,
    /// Somebody is starting commands.
    pumping: bool,
    /// There may be more to start than they have seen.
    again: bool,
}

/// A port.
pub(super) struct Port {
    index: u8,
    drive: Option<Drive>,
    state: Mutex<State>,
    irq: Arc<Irq>,
    dma: DmaMemory,
}

/// What to do after a look at the next command.
enum Next {
    Idle,
    Another,
    Submit(Io, Ticket),
}

/// Which command a request of the disk belongs to.
struct Ticket {
    command: Command,
    generation: u64,
}

impl Port {
    pub fn new(index: u8, drive: Option<Drive>, irq: Arc<Irq>, dma: DmaMemory) -> Self {
        let port = Self { index, drive, state: Mutex::default(), irq, dma };
        port.reset();
        port
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the disk still has requests.
    pub fn busy(&self) -> bool {
        self.lock().in_flight > 0
    }

    /// Waits until it has none.
    pub fn drain(&self) {
        if let Some(disk) = self.drive.as_ref().and_then(|drive| drive.disk.as_ref()) {
            disk.drain();
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.stop();
        state.regs = Registers {
            cmd: cmd::SPIN_UP | cmd::POWER,
            tfd: NO_DEVICE,
            sig: u32::MAX,
            ..Registers::default()
        };
        self.device_reset(&mut state);
        state.regs.serr = 0;
        self.irq.set_port(self.index, false, false);
    }

    /// The device has been reset and sends its signature.
    fn device_reset(&self, state: &mut State) {
        state.regs.drive = DriveState { tray_open: state.regs.drive.tray_open, ..DriveState::default() };
        state.regs.halted = false;
        let Some(drive) = &self.drive else { return };
        state.regs.serr |= SERR_EXCHANGED | SERR_PHY;
        self.sign(state, drive);
    }

    /// The device says what it is.
    fn sign(&self, state: &mut State, drive: &Drive) {
        let reply = drive.signature();
        state.regs.set_task_file(&reply);
        // 3.3.9: LBA high, mid and low, sector count.
        let [low, mid, high, ..] = reply.lba.to_le_bytes();
        state.regs.sig = u32::from_le_bytes([reply.count as u8, low, mid, high]);
        state.regs.signature_due = true;
        self.send_signature(state);
    }

    fn send_signature(&self, state: &mut State) {
        if !state.regs.signature_due || state.regs.cmd & cmd::FRE == 0 {
            return;
        }
        let Some(drive) = &self.drive else { return };
        state.regs.signature_due = false;
        drive.signature().send(&self.dma, state.regs.area, false);
    }

    /// Tells the controller what is pending; `fresh` bits are news.
    fn interrupt(&self, state: &State, fresh: u32) {
        let pending = state.regs.events() & state.regs.ie;
        self.irq.set_port(self.index, pending != 0, pending & fresh != 0);
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let state = self.lock();
        let regs = &state.regs;
        match offset {
            register::CLB => regs.list as u32,
            register::CLBU => (regs.list >> 32) as u32,
            register::FB => regs.area as u32,
            register::FBU => (regs.area >> 32) as u32,
            register::IS => regs.events(),
            register::IE => regs.ie,
            register::CMD => state.command(),
            register::TFD => regs.tfd,
            register::SIG => regs.sig,
            register::SSTS => self.link(regs),
            register::SCTL => regs.sctl,
            register::SERR => regs.serr,
            register::SACT => regs.sact,
            register::CI => regs.ci,
            _ => 0,
        }
    }

    fn link(&self, regs: &Registers) -> u32 {
        match regs.sctl & DET {
            DET_OFFLINE => LINK_OFF,
            DET_RESET => 0,
            _ if self.drive.is_some() => LINK_UP,
            _ => 0,
        }
    }

    /// Writes a register.
    pub fn write(self: &Arc<Self>, offset: u64, value: u32) {
        let mut state = self.lock();
        let regs = &mut state.regs;
        let low = |old: u64, mask: u32| old & !u64::from(u32::MAX) | u64::from(value & mask);
        let high = |old: u64| old & u64::from(u32::MAX) | u64::from(value) << 32;
        match offset {
            register::CLB => regs.list = low(regs.list, !0x3ff),
            register::CLBU => regs.list = high(regs.list),
            register::FB => regs.area = low(regs.area, !0xff),
            register::FBU => regs.area = high(regs.area),
            register::IS => {
                regs.is &= !value;
                self.interrupt(&state, 0);
            }
            register::IE => {
                let fresh = value & !regs.ie;
                regs.ie = value & event::ALL;
                self.interrupt(&state, fresh);
            }
            register::CMD => self.write_command(&mut state, value),
            register::SCTL => self.write_control(&mut state, value),
            register::SERR => {
                regs.serr &= !value;
                self.interrupt(&state, 0);
            }
            register::SACT if regs.cmd & cmd::ST != 0 => regs.sact |= value,
            register::CI if regs.cmd & cmd::ST != 0 => regs.ci |= value,
            _ => {}
        }
        drop(state);
        if matches!(offset, register::CI | register::CMD) {
            self.pump();
        }
    }

    fn write_command(&self, state: &mut State, value: u32) {
        let old = state.regs.cmd;
        state.regs.cmd = old & !cmd::WRITABLE | value & cmd::WRITABLE;
        if old & cmd::ST != 0 && value & cmd::ST == 0 {
            state.stop();
        }
        if value & cmd::CLO != 0 && value & cmd::ST == 0 {
            state.regs.tfd &= !u32::from(status::BUSY | status::DATA_REQUEST);
        }
        self.send_signature(state);
    }

    fn write_control(&self, state: &mut State, value: u32) {
        let old = state.regs.sctl & DET;
        // Speed and power limits can be set, and have no effect on a link that is not there.
        state.regs.sctl = value & 0xfff;
        let new = value & DET;
        if new == DET_RESET && old != DET_RESET {
            state.stop();
            state.regs.tfd = NO_DEVICE | u32::from(status::BUSY);
        }
        if new == 0 && (old == DET_RESET || old == DET_OFFLINE) {
            self.device_reset(state);
            self.interrupt(state, event::FROM_SERR);
        }
    }

    /// Starts what can be started.
    pub fn pump(self: &Arc<Self>) {
        {
            let mut state = self.lock();
            state.again = true;
            if std::mem::replace(&mut state.pumping, true) {
                return;
            }
        }
        let mut left = BUDGET;
        loop {
            match self.next() {
                Next::Idle => return,
                Next::Another => {}
                Next::Submit(io, ticket) => self.submit(io, ticket),
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        let port = self.clone();
        self.lock().pumping = false;
        let thread = std::thread::Builder::new().name("ahci".into()).spawn(move || port.pump());
        // Without a thread the port waits for the next write to it.
        drop(thread);
    }

    /// Looks at the next command.
    fn next(&self) -> Next {
        let mut state = self.lock();
        let waiting = if state.exclusive || state.regs.halted || state.regs.cmd & cmd::ST == 0 {
            0
        } else {
            state.regs.ci
        };
        if waiting == 0 {
            if std::mem::take(&mut state.again) {
                return Next::Another;
            }
            state.pumping = false;
            return Next::Idle;
        }
        // From the last slot on, so that none starves (5.5.1).
        let from = u32::from(state.regs.slot) + 1;
        let slot = (waiting.rotate_right(from & 31).trailing_zeros() + from) as u8 & 31;
        let command = match Command::fetch(&self.dma, state.regs.list, slot) {
            Ok(command) => command,
            Err(DmaError::Off) => {
                // `resume` goes on.
                (state.pumping, state.again) = (false, false);
                return Next::Idle;
            }
            Err(DmaError::Memory(_)) => {
                self.bus_error(&mut state);
                return Next::Another;
            }
        };
        self.start(&mut state, command)
    }

    fn start(&self, state: &mut State, command: Command) -> Next {
        let Some(drive) = &self.drive else {
            self.bus_error(state);
            return Next::Another;
        };
        let queued = drive.is_queued(&command);
        if !queued && state.queued != 0 {
            // Not before the queue is empty; its last command calls again.
            state.again = false;
            state.pumping = false;
            return Next::Idle;
        }
        state.regs.slot = command.slot;
        if !command.is_valid() {
            self.bus_error(state);
            return Next::Another;
        }
        if let Some(asserted) = command.control() {
            self.soft_reset(state, drive, asserted);
            state.regs.ci &= !(1 << command.slot);
            return Next::Another;
        }
        state.regs.tfd = u32::from(status::BUSY | status::READY);
        match drive.execute(&mut state.regs.drive, &command, &self.dma) {
            Outcome::Done(reply) => self.finish(state, &command, protocol(queued), &reply, 0),
            Outcome::Data { bytes, protocol } => self.finish_data(state, drive, &command, protocol, &bytes),
            Outcome::BadMemory => self.bus_error(state),
            Outcome::Io(io) => {
                if queued {
                    // 5.6.4.1: accepted, so the slot's bit is only in SACT.
                    state.regs.ci &= !(1 << command.slot);
                    state.queued |= 1 << command.slot;
                    state.regs.tfd = u32::from(status::GOOD);
                } else {
                    state.exclusive = true;
                }
                // Before the lock goes: a port that is stopped now still runs until this is answered.
                state.in_flight += 1;
                let generation = state.generation;
                return Next::Submit(io, Ticket { command, generation });
            }
        }
        Next::Another
    }

    /// SRST: the device is reset when it goes away, and sends its signature.
    fn soft_reset(&self, state: &mut State, drive: &Drive, asserted: bool) {
        if asserted {
            state.regs.drive.soft_reset = true;
            state.regs.tfd = u32::from(status::BUSY);
        } else if std::mem::take(&mut state.regs.drive.soft_reset) {
            state.regs.drive = DriveState { tray_open: state.regs.drive.tray_open, ..DriveState::default() };
            self.sign(state, drive);
        }
    }

    /// Gives the host the device's data and ends the command.
    fn finish_data(
        &self,
        state: &mut State,
        drive: &Drive,
        command: &Command,
        protocol: Protocol,
        bytes: &[u8],
    ) {
        let Ok((slices, room)) = command.gather(&self.dma, bytes.len() as u64) else {
            self.bus_error(state);
            return;
        };
        let mut from = bytes;
        for slice in slices {
            let n = slice.write(from);
            from = from.get(n..).unwrap_or_default();
        }
        let mut reply = Reply::GOOD;
        if drive.media == super::drive::Media::Optical && protocol == Protocol::Register {
            // Interrupt reason: done.
            reply.count = 3;
        }
        self.finish(state, command, protocol, &reply, room);
    }

    /// Submits a request without the lock: it may be answered at once.
    fn submit(self: &Arc<Self>, io: Io, ticket: Ticket) {
        let Some(disk) = self.drive.as_ref().and_then(|drive| drive.disk.clone()) else { return };
        let Io { ops, protocol, lba, bytes } = io;
        let read = matches!(ops.first(), Some(Op::Read { .. }));
        let port = self.clone();
        submit_all(&*disk, ops, move |result| {
            let failed = result.err().map(|kind| Failed { kind, read, lba });
            port.answered(&ticket, protocol, bytes, failed.as_ref());
        });
    }

    /// The disk has answered.
    fn answered(self: &Arc<Self>, ticket: &Ticket, protocol: Protocol, bytes: u64, failed: Option<&Failed>) {
        let mut state = self.lock();
        state.in_flight -= 1;
        if state.generation != ticket.generation {
            return;
        }
        let slot = ticket.command.slot;
        state.queued &= !(1 << slot);
        if protocol != Protocol::Queued {
            state.exclusive = false;
        }
        // After a failed queued command the others are gone, too (ACS-3, 4.16.3).
        if state.regs.halted {
            return;
        }
        let reply = match (failed, &self.drive) {
            (Some(failed), Some(drive)) => drive.io_failed(&mut state.regs.drive, failed),
            _ => self.good(),
        };
        let moved = if failed.is_none() { bytes } else { 0 };
        self.finish(&mut state, &ticket.command, protocol, &reply, moved);
        drop(state);
        self.pump();
    }

    fn good(&self) -> Reply {
        let optical = self.drive.as_ref().is_some_and(|d| d.media == super::drive::Media::Optical);
        Reply { count: if optical { 3 } else { 0 }, ..Reply::GOOD }
    }

    /// Ends a command: sends the FIS, updates the registers, interrupts.
    fn finish(&self, state: &mut State, command: &Command, protocol: Protocol, reply: &Reply, bytes: u64) {
        let bit = 1u32 << command.slot;
        let receive = state.regs.cmd & cmd::FRE != 0;
        let good = reply.status & status::ERROR == 0;
        state.regs.set_task_file(reply);
        let area = state.regs.area;
        let mut events = match protocol {
            Protocol::Queued => {
                if receive {
                    reply.send_bits(&self.dma, area, if good { bit } else { 0 });
                }
                if good {
                    state.regs.sact &= !bit;
                } else {
                    state.regs.drive.queue_error = Some((command.slot, reply.error, reply.lba));
                }
                state.regs.ci &= !bit;
                event::DEVICE_BITS
            }
            Protocol::PioIn if good => {
                if receive {
                    reply.send_pio(&self.dma, area, bytes.min(0xfffe) as u16);
                }
                event::PIO_SETUP
            }
            Protocol::Register | Protocol::PioIn => {
                if receive {
                    reply.send(&self.dma, area, true);
                }
                event::REGISTERS
            }
        };
        if protocol != Protocol::Queued {
            command.set_transferred(&self.dma, u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        if good {
            state.regs.ci &= !bit;
        } else {
            // 6.2.2.1: commands stop until software clears ST; the slot stays issued.
            state.regs.slot = command.slot;
            state.regs.halted = true;
            events |= event::TASK_FILE;
        }
        let fresh = events;
        state.regs.is |= events;
        self.interrupt(state, fresh);
    }

    /// Memory that a command names is not there.
    fn bus_error(&self, state: &mut State) {
        state.regs.halted = true;
        state.regs.is |= event::BUS_FATAL;
        self.interrupt(state, event::BUS_FATAL);
    }

    /// The registers, once nothing is in flight.
    pub fn save(&self) -> Option<Registers> {
        let state = self.lock();
        (state.in_flight == 0).then(|| state.regs.clone())
    }

    /// Takes saved registers.
    pub fn restore(&self, regs: Registers) {
        let mut state = self.lock();
        state.stop();
        state.regs = regs;
        self.interrupt(&state, 0);
    }
}

fn protocol(queued: bool) -> Protocol {
    if queued { Protocol::Queued } else { Protocol::Register }
}

impl State {
    /// Drops all commands. Requests that the disk has are answered into the void.
    fn stop(&mut self) {
        self.generation += 1;
        (self.exclusive, self.queued) = (false, 0);
        (self.regs.ci, self.regs.sact, self.regs.halted) = (0, 0, false);
    }

    fn command(&self) -> u32 {
        let mut value = self.regs.cmd | u32::from(self.regs.slot) << cmd::SLOT_SHIFT;
        if value & cmd::FRE != 0 {
            value |= cmd::FR;
        }
        // The list runs until the disk has let go of the guest's memory.
        if value & cmd::ST != 0 || self.in_flight > 0 {
            value |= cmd::CR;
        }
        value
    }
}

impl Registers {
    fn set_task_file(&mut self, reply: &Reply) {
        self.tfd = u32::from(reply.error) << 8 | u32::from(reply.status);
    }

    /// The interrupt status, with the bits that follow SERR.
    fn events(&self) -> u32 {
        let from = |bit: u32, event: u32| if self.serr & bit != 0 { event } else { 0 };
        self.is & !event::FROM_SERR | from(SERR_EXCHANGED, event::CONNECT) | from(SERR_PHY, event::PHY)
    }
}
