//! Which keys a load asks for, one after the other.

use super::Order;

/// An endless series of numbers below a bound.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    bound: u64,
    random: Random,
    order: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Uniform,
    Zipf(Zipf),
    InTurn { next: u64, step: u64 },
}

impl Keys {
    /// The series of one thread out of `threads`: repeatable, and not that of another.
    pub(super) fn new(order: Order, bound: u64, thread: u64, threads: u64) -> Self {
        let order = match order {
            Order::Uniform => Kind::Uniform,
            Order::Zipf(exponent) => Kind::Zipf(Zipf::new(bound, exponent)),
            Order::InTurn => Kind::InTurn { next: thread, step: threads },
        };
        Self { bound, random: Random(thread), order }
    }

    /// The next number.
    pub(super) fn draw(&mut self) -> u64 {
        match &mut self.order {
            Kind::Uniform => self.random.below(self.bound),
            Kind::Zipf(zipf) => zipf.draw(&mut self.random) - 1,
            Kind::InTurn { next, step } => {
                let key = *next % self.bound;
                *next += *step;
                key
            }
        }
    }
}

/// Steele, Lea and Flood's SplitMix64: enough of chance for a load, in a few instructions.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the upper half of a product is below the bound")]
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// From 0 to below 1.
    fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Zipf's distribution: the n-th is drawn in proportion to 1 / n to the power of an exponent.
///
/// By rejection-inversion (Hörmann and Derflinger, 1996): no table, and hardly more than one draw for each number. The hat
/// over the n-th is the integral of the power from n − ½ to n + ½.
#[derive(Clone, Debug)]
struct Zipf {
    bound: u64,
    exponent: f64,
    /// The integral at its ends.
    low: f64,
    high: f64,
    /// Closer than this to the n-th, no draw is rejected.
    near: f64,
}

impl Zipf {
    fn new(bound: u64, exponent: f64) -> Self {
        let mut zipf = Self { bound, exponent, low: 0.0, high: 0.0, near: 0.0 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(bound as f64 + 0.5);
        zipf.near = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    fn weight(&self, x: f64) -> f64 {
        x.powf(-self.exponent)
    }

    /// The integral of [`weight`](Self::weight) from 1 to `x`.
    fn integral(&self, x: f64) -> f64 {
        let power = 1.0 - self.exponent;
        if power.abs() < 1e-9 { x.ln() } else { (power * x.ln()).exp_m1() / power }
    }

    fn inverse(&self, area: f64) -> f64 {
        let power = 1.0 - self.exponent;
        if power.abs() < 1e-9 { area.exp() } else { ((power * area).ln_1p() / power).exp() }
    }

    /// From 1 to the bound.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded, and clamped to the bound"
    )]
    fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let area = self.high + random.fraction() * (self.low - self.high);
            let x = self.inverse(area);
            let drawn = (x.round() as u64).clamp(1, self.bound);
            let n = drawn as f64;
            if n - x <= self.near || area >= self.integral(n + 0.5) - self.weight(n) {
                return drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 200_000;

    fn counts(order: Order, bound: u64) -> Vec<u32> {
        let mut keys = Keys::new(order, bound, 0, 1);
        let mut counts = vec![0; usize::try_from(bound).unwrap()];
        (0..DRAWS).for_each(|_| counts[usize::try_from(keys.draw()).unwrap()] += 1);
        counts
    }

    #[test]
    fn at_random_every_key_comes_about_as_often() {
        for count in counts(Order::Uniform, 100) {
            assert!((1_800..2_200).contains(&count), "{count} of {}", DRAWS / 100);
        }
        assert_eq!(counts(Order::Uniform, 1), [DRAWS]);
    }

    #[test]
    fn by_zipf_the_nth_key_comes_as_often_as_its_power_says() {
        for exponent in [0.5, 1.0, 1.3, 3.0] {
            let counts = counts(Order::Zipf(exponent), 50);
            let all: f64 = (1..=50).map(|n| f64::from(n).powf(-exponent)).sum();
            for (n, count) in (1..).zip(&counts) {
                let expected = f64::from(DRAWS) * f64::from(n).powf(-exponent) / all;
                // Five standard deviations.
                let may_miss = 5.0 * expected.sqrt().max(1.0);
                assert!(
                    (f64::from(*count) - expected).abs() < may_miss,
                    "{exponent}: {n}: {count}, {expected}"
                );
            }
        }
        assert_eq!(counts(Order::Zipf(1.0), 1), [DRAWS]);
    }

    #[test]
    fn in_turn_threads_share_the_keys_and_begin_again_after_the_last() {
        let mut threads = [Keys::new(Order::InTurn, 5, 0, 2), Keys::new(Order::InTurn, 5, 1, 2)];
        let drawn: Vec<u64> = (0..8).map(|n| threads[n % 2].draw()).collect();
        assert_eq!(drawn, [0, 1, 2, 3, 4, 0, 1, 2]);
    }
}
