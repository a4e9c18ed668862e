//! The 16550A UART (National PC16550D datasheet).
//!
//! The programmed rate does not slow anything down, so the receive time-out is over at once. OUT2
//! does not gate the interrupt: small systems that never set it expect input all the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{BusDevice, Device, IrqLine, SavedState, StateError};
use host::tty::{CharBackend, CharFrontend};
use serde::{Deserialize, Serialize};

use super::access::{read_registers, write_registers};

/// Ports and IRQs of com1 to com4.
pub const COM_PORTS: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// Number of ports of a UART.
pub const UART_PORTS: u16 = 8;

const VERSION: u32 = 1;
const FIFO: usize = 16;

// Interrupt enable.
const IER_RECEIVE: u8 = 1 << 0;
const IER_TRANSMIT: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_MODEM: u8 = 1 << 3;
const IER_ALL: u8 = 0x0f;

// Interrupt identification.
const IIR_NONE: u8 = 0x1;
const IIR_MODEM: u8 = 0x0;
const IIR_TRANSMIT: u8 = 0x2;
const IIR_RECEIVE: u8 = 0x4;
const IIR_LINE: u8 = 0x6;
const IIR_TIMEOUT: u8 = 0xc;
const IIR_FIFO: u8 = 0xc0;

// FIFO control.
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;
const FCR_CLEAR_TRANSMIT: u8 = 1 << 2;
const FCR_KEPT: u8 = 0xc9;

const LCR_DLAB: u8 = 1 << 7;

// Modem control.
const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_ALL: u8 = 0x1f;

// Line status.
const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_THR_EMPTY: u8 = 1 << 5;
const LSR_EMPTY: u8 = 1 << 6;

// Modem status.
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
/// Change of RI counts only when it goes away.
const MSR_RI_ENDED: u8 = 1 << 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Changes since the modem status was read (low half of the register).
    modem_changes: u8,
    scratch: u8,
    divisor: u16,
    receive: VecDeque<u8>,
    /// Bytes that the back end did not take yet.
    transmit: VecDeque<u8>,
    overrun: bool,
    /// The transmitter ran empty, and nobody has been told yet.
    empty_event: bool,
}

impl State {
    fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            modem_changes: 0,
            scratch: 0,
            // 115200 baud of the 1.8432 MHz crystal.
            divisor: 1,
            receive: VecDeque::new(),
            transmit: VecDeque::new(),
            overrun: false,
            empty_event: false,
        }
    }

    fn fifo(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.fifo() { FIFO } else { 1 }
    }

    fn looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn trigger(&self) -> usize {
        match (self.fifo(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Room for input from outside.
    fn room(&self) -> usize {
        if self.looped() { 0 } else { self.depth().saturating_sub(self.receive.len()) }
    }

    fn push(&mut self, byte: u8) {
        if self.receive.len() < self.depth() {
            self.receive.push_back(byte);
        } else {
            self.overrun = true;
        }
    }

    /// The modem lines: a ready modem is always there; in loopback our own outputs.
    fn modem_lines(&self) -> u8 {
        if !self.looped() {
            return MSR_DCD | MSR_DSR | MSR_CTS;
        }
        let pairs = [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
        pairs.iter().filter(|(out, _)| self.mcr & out != 0).fold(0, |lines, (_, line)| lines | line)
    }

    fn set_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value & MCR_ALL;
        let after = self.modem_lines();
        let mut changes = (before ^ after) >> 4;
        if after & MSR_RI != 0 {
            changes &= !MSR_RI_ENDED;
        }
        self.modem_changes |= changes;
    }

    /// The pending interrupt of highest priority.
    fn identify(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.overrun {
            IIR_LINE
        } else if self.ier & IER_RECEIVE != 0 && self.receive.len() >= self.trigger() {
            IIR_RECEIVE
        } else if self.ier & IER_RECEIVE != 0 && !self.receive.is_empty() {
            IIR_TIMEOUT
        } else if self.ier & IER_TRANSMIT != 0 && self.empty_event {
            IIR_TRANSMIT
        } else if self.ier & IER_MODEM != 0 && self.modem_changes != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    fn line_status(&mut self) -> u8 {
        let mut status = 0;
        if !self.receive.is_empty() {
            status |= LSR_DATA;
        }
        if std::mem::take(&mut self.overrun) {
            status |= LSR_OVERRUN;
        }
        if self.transmit.is_empty() {
            status |= LSR_THR_EMPTY | LSR_EMPTY;
        }
        status
    }

    fn read(&mut self, register: u64) -> u8 {
        let divisor = self.lcr & LCR_DLAB != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match register {
            0 if divisor => divisor_low,
            0 => self.receive.pop_front().unwrap_or(0),
            1 if divisor => divisor_high,
            1 => self.ier,
            2 => {
                let id = self.identify();
                if id == IIR_TRANSMIT {
                    self.empty_event = false;
                }
                id | if self.fifo() { IIR_FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => self.line_status(),
            6 => self.modem_lines() | std::mem::take(&mut self.modem_changes),
            _ => self.scratch,
        }
    }

    fn write_fcr(&mut self, value: u8) {
        if (value ^ self.fcr) & FCR_ENABLE != 0 {
            self.receive.clear();
            self.transmit.clear();
        }
        // The other bits count only together with the enable bit.
        self.fcr = if value & FCR_ENABLE != 0 { value & FCR_KEPT } else { 0 };
        if self.fifo() && value & FCR_CLEAR_RECEIVE != 0 {
            self.receive.clear();
        }
        if self.fifo() && value & FCR_CLEAR_TRANSMIT != 0 {
            self.transmit.clear();
            self.empty_event = true;
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        let divisor = self.lcr & LCR_DLAB != 0;
        match register {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => {
                self.empty_event = false;
                if self.looped() {
                    self.push(value);
                    self.empty_event = true;
                } else if self.transmit.len() < self.depth() {
                    self.transmit.push_back(value);
                }
            }
            1 if divisor => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            1 => {
                // Enabling it with the transmitter empty is an event by itself.
                if value & !self.ier & IER_TRANSMIT != 0 && self.transmit.is_empty() {
                    self.empty_event = true;
                }
                self.ier = value & IER_ALL;
            }
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => self.set_mcr(value),
            7 => self.scratch = value,
            _ => {}
        }
    }

    fn valid(&self) -> bool {
        self.ier & !IER_ALL == 0
            && self.fcr & !FCR_KEPT == 0
            && self.mcr & !MCR_ALL == 0
            && self.modem_changes < 16
            && self.receive.len() <= self.depth()
            && self.transmit.len() <= self.depth()
    }
}

/// One UART.
pub struct Uart {
    name: String,
    state: Mutex<State>,
    irq: IrqLine,
    backend: Option<Arc<dyn CharBackend>>,
}

impl Uart {
    /// A UART after power-on. Without a back end it transmits into the void and never receives.
    pub fn new(name: impl Into<String>, irq: IrqLine, backend: Option<Arc<dyn CharBackend>>) -> Arc<Self> {
        let uart = Arc::new(Self { name: name.into(), state: Mutex::new(State::new()), irq, backend });
        if let Some(backend) = &uart.backend {
            let front: Arc<dyn CharFrontend> = uart.clone();
            backend.attach(Arc::downgrade(&front));
        }
        uart
    }

    /// The back end.
    pub fn backend(&self) -> Option<&Arc<dyn CharBackend>> {
        self.backend.as_ref()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what is to be sent, and sets the interrupt line.
    fn settle(&self, state: &mut State) {
        if !state.transmit.is_empty() {
            let waiting = state.transmit.make_contiguous();
            let taken = self.backend.as_ref().map_or(waiting.len(), |b| b.write(waiting));
            state.transmit.drain(..taken.min(state.transmit.len()));
            if state.transmit.is_empty() {
                state.empty_event = true;
            }
        }
        self.irq.set(state.identify() != IIR_NONE);
    }

    /// Runs `change`, and lets the back end go on if that made room.
    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let full = state.room() == 0;
        change(&mut state);
        self.settle(&mut state);
        if let Some(backend) = self.backend.as_ref().filter(|_| full && state.room() > 0) {
            backend.input_ready();
        }
    }
}

impl CharFrontend for Uart {
    fn can_receive(&self) -> usize {
        self.lock().room()
    }

    fn receive(&self, data: &[u8]) {
        let mut state = self.lock();
        for byte in data {
            state.push(*byte);
        }
        self.settle(&mut state);
    }

    fn output_ready(&self) {
        let mut state = self.lock();
        self.settle(&mut state);
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.with(|s| read_registers(offset, data, 1, |register| u64::from(s.read(register))));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Byte by byte: each byte of a wider store to the data register's port is its own access.
        write_registers(offset, data, 1, |register, value, _| self.with(|s| s.write(register, value as u8)));
    }
}

impl Device for Uart {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn reset(&self) {
        self.with(|s| *s = State::new());
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &*self.lock())
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: State = saved.decode(VERSION)?;
        if !state.valid() {
            return Err(StateError::Invalid("UART"));
        }
        self.with(|s| *s = state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{Probe, hammer};
    use super::*;
    use std::sync::Weak;

    /// Takes output up to a limit.
    #[derive(Default)]
    struct Tape {
        out: Mutex<(Vec<u8>, usize)>,
        ready: Mutex<u32>,
    }

    impl CharBackend for Tape {
        fn attach(&self, _: Weak<dyn CharFrontend>) {}
        fn write(&self, data: &[u8]) -> usize {
            let mut out = self.out.lock().unwrap();
            let n = out.1.min(data.len());
            out.1 -= n;
            out.0.extend(&data[..n]);
            n
        }
        fn input_ready(&self) {
            *self.ready.lock().unwrap() += 1;
        }
        fn flush(&self) {}
    }

    fn uart(room: usize) -> (Arc<Uart>, Arc<Tape>, Arc<Probe>) {
        let (tape, probe) = (Arc::new(Tape::default()), Arc::new(Probe::default()));
        tape.out.lock().unwrap().1 = room;
        (Uart::new("com1", IrqLine::new(probe.clone(), 4), Some(tape.clone())), tape, probe)
    }

    fn get(uart: &Uart, register: u64) -> u8 {
        let mut data = [0];
        uart.read(register, &mut data);
        data[0]
    }

    fn level(probe: &Probe) -> bool {
        probe.take_irqs().last().is_some_and(|(_, level)| *level)
    }

    #[test]
    fn it_is_recognized_as_a_16550a() {
        let (uart, ..) = uart(0);
        uart.write(1, &[0xff]);
        assert_eq!(get(&uart, 1), 0x0f);
        uart.write(1, &[0]);
        uart.write(2, &[1]);
        assert_eq!(get(&uart, 2), 0xc1);
        uart.write(4, &[MCR_LOOP | MCR_OUT2 | MCR_RTS]);
        assert_eq!(get(&uart, 6) & 0xf0, MSR_DCD | MSR_CTS);
        uart.write(4, &[0]);
        assert_eq!(get(&uart, 6) & 0xf0, MSR_DCD | MSR_DSR | MSR_CTS);
        uart.write(3, &[0x83]);
        uart.write(0, &[0x0c, 0x01]);
        assert_eq!((get(&uart, 0), get(&uart, 1)), (0x0c, 0x01));
        uart.write(7, &[0xa5]);
        assert_eq!(get(&uart, 7), 0xa5);
        assert_eq!(get(&uart, 5), 0x60);
    }

    #[test]
    fn transmitter_empty_interrupts_once_per_event() {
        let (uart, tape, probe) = uart(100);
        uart.write(1, &[IER_TRANSMIT]);
        assert!(level(&probe));
        assert_eq!(get(&uart, 2), IIR_TRANSMIT);
        assert_eq!(get(&uart, 2), IIR_NONE);
        assert!(!level(&probe));
        uart.write(0, b"x");
        assert!(level(&probe));
        assert_eq!(tape.out.lock().unwrap().0, b"x");
        uart.write(1, &[0]);
        uart.write(1, &[IER_TRANSMIT]);
        assert_eq!(get(&uart, 2), IIR_TRANSMIT);
    }

    #[test]
    fn a_full_back_end_holds_the_transmitter() {
        let (uart, tape, probe) = uart(2);
        uart.write(2, &[FCR_ENABLE]);
        uart.write(1, &[IER_TRANSMIT]);
        get(&uart, 2);
        for byte in b"abcd" {
            uart.write(0, &[*byte]);
        }
        assert_eq!(get(&uart, 5) & (LSR_THR_EMPTY | LSR_EMPTY), 0);
        get(&uart, 2);
        assert!(!level(&probe));
        tape.out.lock().unwrap().1 = 10;
        uart.output_ready();
        assert_eq!(get(&uart, 5) & LSR_THR_EMPTY, LSR_THR_EMPTY);
        assert!(level(&probe));
        assert_eq!(tape.out.lock().unwrap().0, b"abcd");
    }

    #[test]
    fn receive_triggers_time_outs_and_flow_control() {
        let (uart, tape, probe) = uart(0);
        uart.write(2, &[FCR_ENABLE | 0x80]);
        uart.write(1, &[IER_RECEIVE]);
        assert_eq!(uart.can_receive(), 16);
        uart.receive(b"1234567");
        assert!(level(&probe));
        assert_eq!(get(&uart, 2), IIR_FIFO | IIR_TIMEOUT);
        uart.receive(b"890123456");
        assert_eq!(get(&uart, 2), IIR_FIFO | IIR_RECEIVE);
        assert_eq!((uart.can_receive(), *tape.ready.lock().unwrap()), (0, 0));
        assert_eq!(get(&uart, 0), b'1');
        assert_eq!((uart.can_receive(), *tape.ready.lock().unwrap()), (1, 1));
        uart.write(2, &[FCR_ENABLE | FCR_CLEAR_RECEIVE]);
        assert_eq!(get(&uart, 5) & LSR_DATA, 0);
        assert!(!level(&probe));
    }

    #[test]
    fn loopback_returns_bytes_and_overruns() {
        let (uart, tape, _) = uart(100);
        uart.write(4, &[MCR_LOOP]);
        uart.write(1, &[IER_LINE]);
        assert_eq!(uart.can_receive(), 0);
        uart.write(0, b"a");
        uart.write(0, b"b");
        assert_eq!(get(&uart, 2), IIR_LINE);
        assert_eq!(get(&uart, 5) & (LSR_OVERRUN | LSR_DATA), LSR_OVERRUN | LSR_DATA);
        assert_eq!(get(&uart, 5) & LSR_OVERRUN, 0);
        assert_eq!(get(&uart, 0), b'a');
        assert!(tape.out.lock().unwrap().0.is_empty());
        uart.write(4, &[0]);
        assert_eq!(*tape.ready.lock().unwrap(), 1);
    }

    #[test]
    fn modem_changes_interrupt_and_clear_on_read() {
        let (uart, _, probe) = uart(0);
        uart.write(4, &[MCR_LOOP | MCR_OUT1]);
        get(&uart, 6);
        uart.write(1, &[IER_MODEM]);
        uart.write(4, &[MCR_LOOP | MCR_OUT1 | MCR_DTR]);
        assert_eq!(get(&uart, 2), IIR_MODEM);
        assert_eq!(get(&uart, 6), MSR_DSR | MSR_RI | 0x02);
        assert!(!level(&probe));
        uart.write(4, &[MCR_LOOP | MCR_DTR]);
        assert_eq!(get(&uart, 6), MSR_DSR | MSR_RI_ENDED);
    }

    #[test]
    fn state_survives_and_hostile_accesses_do_no_harm() {
        let (uart, tape, _) = uart(0);
        uart.write(2, &[FCR_ENABLE | 0x40]);
        uart.receive(b"abc");
        uart.write(0, b"z");
        let saved = uart.save().unwrap();
        uart.reset();
        uart.restore(&saved).unwrap();
        assert_eq!(uart.save().unwrap(), saved);
        assert_eq!(get(&uart, 0), b'a');
        tape.out.lock().unwrap().1 = usize::MAX;
        hammer(&*uart, &*uart, u64::from(UART_PORTS));
    }
}
