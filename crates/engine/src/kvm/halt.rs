//! Notices that a guest has halted for good: every vCPU in HLT with interrupts off.
//!
//! HLT sleeps inside of KVM, so nobody sees it. The watch costs nothing while the guest does anything:
//! it looks at the CPU time of the vCPUs' threads, and asks the vCPUs themselves only when none has moved
//! for a while; and ever more rarely if they turn out to be merely idle.

use std::sync::Mutex;

use super::kick::{Kick, Life};

const MS: u64 = 1_000_000;
/// How often the CPU times are looked at.
const INTERVAL: u64 = 500 * MS;
/// How long vCPUs get to answer.
const ANSWER: u64 = 20 * MS;
/// Longest time between questions to an idle guest.
const LONGEST: u64 = 16_000 * MS;
/// CPU time that a sleeping vCPU's thread may use between two looks (for answering and going back to
/// sleep).
const NOISE: u64 = 2 * MS;
/// Rounds of "dead" that are needed: after the first, nobody was left to wake anybody.
const ROUNDS: u32 = 2;

#[derive(Default)]
struct Watch {
    last: u64,
    asked: bool,
    dead_rounds: u32,
    wait: u64,
}

/// The watch over one VM.
#[derive(Default)]
pub struct HaltWatch(Mutex<Watch>);

/// What to do after a look.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again after so many ns.
    Again(u64),
    /// The guest has halted.
    Halted,
}

impl HaltWatch {
    /// Called when the time that the last look gave has passed.
    pub fn look(&self, vcpus: &[std::sync::Arc<Kick>]) -> Verdict {
        let times: Option<Vec<u64>> = vcpus.iter().map(|v| v.cpu_time()).collect();
        let total = times.filter(|t| !t.is_empty()).map(|t| t.iter().sum());
        let lives: Vec<Life> = vcpus.iter().map(|v| v.life()).collect();
        let mut watch = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (verdict, ask) = watch.decide(total, &lives);
        drop(watch);
        if ask {
            for vcpu in vcpus {
                vcpu.ask();
            }
        }
        verdict
    }
}

impl Watch {
    /// From total CPU time (`None`: not all vCPUs run) and answers to what comes next, and whether to ask.
    fn decide(&mut self, total: Option<u64>, lives: &[Life]) -> (Verdict, bool) {
        let moved = total.is_none_or(|total| total.abs_diff(self.last) > NOISE);
        self.last = total.unwrap_or(0);
        if moved {
            *self = Self { last: self.last, ..Self::default() };
            return (Verdict::Again(INTERVAL), false);
        }
        if !std::mem::take(&mut self.asked) {
            self.asked = true;
            return (Verdict::Again(ANSWER), true);
        }
        let dead = lives.contains(&Life::Dead)
            && lives.iter().all(|life| matches!(life, Life::Dead | Life::Waiting));
        if !dead {
            self.dead_rounds = 0;
            self.wait = (self.wait * 2).clamp(INTERVAL, LONGEST);
            return (Verdict::Again(self.wait), false);
        }
        self.dead_rounds += 1;
        if self.dead_rounds >= ROUNDS {
            return (Verdict::Halted, false);
        }
        self.asked = true;
        (Verdict::Again(ANSWER), true)
    }
}

/// When the first look is due.
pub const FIRST_LOOK: u64 = INTERVAL;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_moves_is_never_asked() {
        let mut watch = Watch::default();
        for n in 1..10u64 {
            assert_eq!(watch.decide(Some(n * 10 * MS), &[Life::Unknown]), (Verdict::Again(INTERVAL), false));
        }
        assert_eq!(watch.decide(None, &[Life::Dead]), (Verdict::Again(INTERVAL), false));
    }

    #[test]
    fn two_rounds_of_dead_are_a_halt_and_waiting_alone_is_not() {
        let mut watch = Watch::default();
        let lives = [Life::Dead, Life::Waiting];
        assert!(watch.decide(Some(0), &lives).1);
        assert!(watch.decide(Some(0), &lives).1);
        assert_eq!(watch.decide(Some(0), &lives).0, Verdict::Halted);
        let mut watch = Watch::default();
        watch.decide(Some(0), &[Life::Waiting]);
        assert_eq!(watch.decide(Some(0), &[Life::Waiting]), (Verdict::Again(INTERVAL), false));
    }

    #[test]
    fn an_idle_guest_is_asked_ever_more_rarely() {
        let mut watch = Watch::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(watch.decide(Some(0), &[Life::Unknown]).1);
            let Verdict::Again(wait) = watch.decide(Some(0), &[Life::Alive]).0 else { panic!("halted") };
            waits.push(wait / INTERVAL);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 32]);
        watch.decide(Some(100 * MS), &[Life::Unknown]);
        watch.decide(Some(100 * MS), &[Life::Unknown]);
        assert_eq!(watch.decide(Some(100 * MS), &[Life::Alive]).0, Verdict::Again(INTERVAL));
    }
}
