//! Where data and parity are in a stripe, as the numbers in Linux's metadata say
//! (`include/uapi/linux/raid/md_u.h`, `drivers/md/raid5.h`).

/// How parity moves from stripe to stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    level: Level,
    rule: Rule,
}

/// How many parities, and the order in which the second one counts the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// One parity (RAID 4 and 5).
    One,
    /// Two; data is counted from behind the second parity.
    Two,
    /// Two; every device counts by its own number, parity too (DDF).
    TwoFixed,
    /// Two, the second always on the last device; the others as with one.
    TwoLast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    LeftAsymmetric,
    RightAsymmetric,
    LeftSymmetric,
    RightSymmetric,
    First,
    Last,
    /// DDF's "rotating N restart" and "rotating N continue".
    NRestart,
    NContinue,
}

/// The devices of one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// Device of each data chunk, in the order of the array's bytes.
    pub data: Vec<usize>,
    /// Device of the first parity.
    pub p: usize,
    /// Device of the second parity.
    pub q: Option<usize>,
    /// For each data chunk the power of the generator in the second parity.
    pub powers: Vec<usize>,
}

impl Layout {
    /// RAID 4: parity is on the last device.
    pub const RAID4: Self = Self { level: Level::One, rule: Rule::Last };

    /// By the numbers of Linux's metadata.
    pub fn md(level: i32, layout: u32) -> Option<Self> {
        let rule = |n| {
            Some(match n {
                0 => Rule::LeftAsymmetric,
                1 => Rule::RightAsymmetric,
                2 => Rule::LeftSymmetric,
                3 => Rule::RightSymmetric,
                4 => Rule::First,
                5 => Rule::Last,
                _ => return None,
            })
        };
        let (level, rule) = match (level, layout) {
            (4, _) => return Some(Self::RAID4),
            (5, n) => (Level::One, rule(n)?),
            // "Rotating zero restart" is right asymmetric with DDF's counting.
            (6, 8) => (Level::TwoFixed, Rule::RightAsymmetric),
            (6, 9) => (Level::TwoFixed, Rule::NRestart),
            (6, 10) => (Level::TwoFixed, Rule::NContinue),
            (6, n @ 16..=20) => (Level::TwoLast, rule(n - 16)?),
            (6, n) => (Level::Two, rule(n)?),
            _ => return None,
        };
        Some(Self { level, rule })
    }

    /// How many devices hold parity.
    pub fn parities(self) -> usize {
        if self.level == Level::One { 1 } else { 2 }
    }

    /// The devices of the stripe `number` of an array of `devices`, which are more than parities.
    pub fn stripe(self, devices: usize, number: u64) -> Stripe {
        match self.level {
            Level::One => self.single(devices, number),
            Level::TwoLast => {
                let mut stripe = self.single(devices - 1, number);
                stripe.q = Some(devices - 1);
                stripe.powers = ordinals(devices, 0, &stripe);
                stripe
            }
            Level::Two => {
                let mut stripe = self.double(devices, number);
                let first = stripe.q.map_or(0, |q| q + 1);
                stripe.powers = ordinals(devices, first, &stripe);
                stripe
            }
            Level::TwoFixed => {
                let mut stripe = self.double(devices, number);
                stripe.powers.clone_from(&stripe.data);
                stripe
            }
        }
    }

    fn single(self, devices: usize, number: u64) -> Stripe {
        let turn = (number % devices as u64) as usize;
        let last = devices - 1;
        let (p, from) = match self.rule {
            Rule::LeftAsymmetric => (last - turn, None),
            Rule::RightAsymmetric => (turn, None),
            Rule::LeftSymmetric => (last - turn, Some(last - turn)),
            Rule::RightSymmetric => (turn, Some(turn)),
            Rule::First => (0, None),
            Rule::Last | Rule::NRestart | Rule::NContinue => (last, None),
        };
        let data = match from {
            // Data begins behind the parity and wraps around.
            Some(p) => (1..devices).map(|n| (p + n) % devices).collect(),
            None => (0..devices).filter(|n| *n != p).collect(),
        };
        Stripe { data, p, q: None, powers: Vec::new() }
    }

    fn double(self, devices: usize, number: u64) -> Stripe {
        let turn = (number % devices as u64) as usize;
        let last = devices - 1;
        let (p, symmetric) = match self.rule {
            Rule::LeftAsymmetric => (last - turn, false),
            Rule::RightAsymmetric => (turn, false),
            Rule::LeftSymmetric => (last - turn, true),
            Rule::RightSymmetric => (turn, true),
            Rule::First => (0, false),
            Rule::Last => (last - 1, false),
            Rule::NRestart => (last - (turn + 1) % devices, false),
            Rule::NContinue => (last - turn, true),
        };
        // "N continue" has the second parity before the first, the others behind it.
        let before = self.rule == Rule::NContinue;
        let q = if before { (p + last) % devices } else { (p + 1) % devices };
        let data = if symmetric {
            let begin = if before { p + 1 } else { p + 2 };
            (0..devices - 2).map(|n| (begin + n) % devices).collect()
        } else {
            (0..devices).filter(|n| *n != p && *n != q).collect()
        };
        Stripe { data, p, q: Some(q), powers: Vec::new() }
    }
}

/// Numbers data devices from `first` on, around all devices, without parity.
fn ordinals(devices: usize, first: usize, stripe: &Stripe) -> Vec<usize> {
    let order: Vec<usize> = (0..devices)
        .map(|n| (first + n) % devices)
        .filter(|n| *n != stripe.p && Some(*n) != stripe.q)
        .collect();
    stripe.data.iter().map(|device| order.iter().position(|n| n == device).unwrap_or(0)).collect()
}
