//! Which object the next request asks for: uniform, Zipf, or every one once.
//!
//! Owns the draw. The same seed gives the same sequence, so every server of a comparison is asked
//! for the same objects in the same order. Nothing is tabulated: a draw costs a few nanoseconds
//! (uniform) or a few logarithms (Zipf) whatever the number of objects, and touches no memory that
//! would push payload out of the cache.

use anyhow::{Result, ensure};

/// How often an object is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// All alike.
    Uniform,
    /// The object of rank r with a weight of r^-theta; theta is above 0, often 0.99.
    Zipf(f64),
    /// Each exactly once in order, and then no more.
    Once,
}

/// A sequence of object indexes below a count.
#[derive(Clone, Debug)]
pub struct Keys {
    count: u64,
    random: fastrand::Rng,
    draw: Draw,
}

#[derive(Clone, Debug)]
enum Draw {
    Uniform,
    Zipf(Zipf),
    Once { next: u64 },
}

impl Keys {
    /// Makes a sequence over `0..count`, the same for the same `seed`.
    ///
    /// # Errors
    /// If `count` is zero or theta is not a positive number.
    pub fn new(distribution: Distribution, count: u64, seed: u64) -> Result<Keys> {
        ensure!(count > 0, "there is no object to read");
        let draw = match distribution {
            Distribution::Uniform => Draw::Uniform,
            Distribution::Once => Draw::Once { next: 0 },
            Distribution::Zipf(theta) => {
                ensure!(
                    theta.is_finite() && theta > 0.0,
                    "zipf theta {theta} is not a positive number; 0.99 is usual"
                );
                Draw::Zipf(Zipf::new(count, theta))
            }
        };
        Ok(Keys { count, random: fastrand::Rng::with_seed(seed), draw })
    }
}

impl Iterator for Keys {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        match &mut self.draw {
            Draw::Uniform => Some(self.random.u64(0..self.count)),
            Draw::Zipf(zipf) => Some(zipf.scatter(zipf.rank(&mut self.random) - 1)),
            Draw::Once { next } => {
                let key = *next;
                *next += 1;
                (key < self.count).then_some(key)
            }
        }
    }
}

/// Zipf by rejection-inversion (Hörmann and Derflinger, 1996): exact, any theta, no table.
#[derive(Clone, Debug)]
struct Zipf {
    count: u64,
    theta: f64,
    integral_first: f64,
    integral_last: f64,
    accept: f64,
    /// Coprime to `count`: rank times stride visits every object once.
    stride: u64,
}

impl Zipf {
    fn new(count: u64, theta: f64) -> Zipf {
        let mut zipf = Zipf {
            count,
            theta,
            integral_first: 0.0,
            integral_last: 0.0,
            accept: 0.0,
            stride: stride(count),
        };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(count as f64 + 0.5);
        zipf.accept = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    /// Draws a rank from 1, the most frequent.
    fn rank(&self, random: &mut fastrand::Rng) -> u64 {
        loop {
            let span = self.integral_first - self.integral_last;
            let area = self.integral_last + random.f64() * span;
            let x = self.inverse(area);
            let rank = ((x + 0.5) as u64).clamp(1, self.count);
            let at = rank as f64;
            if at - x <= self.accept || area >= self.integral(at + 0.5) - self.weight(at) {
                return rank;
            }
        }
    }

    /// Spreads ranks over the objects: neighbours in rank are not neighbours in a file.
    fn scatter(&self, rank: u64) -> u64 {
        (u128::from(rank) * u128::from(self.stride) % u128::from(self.count)) as u64
    }

    fn weight(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }

    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let power = (1.0 - self.theta) * log;
        // Near theta 1 the quotient is 0/0; its series starts with 1 + power/2.
        let quotient = if power.abs() > 1e-8 { power.exp_m1() / power } else { 1.0 + power / 2.0 };
        quotient * log
    }

    fn inverse(&self, area: f64) -> f64 {
        let power = (area * (1.0 - self.theta)).max(-1.0);
        let quotient = if power.abs() > 1e-8 { power.ln_1p() / power } else { 1.0 - power / 2.0 };
        (quotient * area).exp()
    }
}

/// Returns the first number from the golden section of `count` upwards that is coprime to it.
fn stride(count: u64) -> u64 {
    let mut stride = ((count as f64 * 0.618) as u64).max(1);
    while greatest_common_divisor(stride, count) != 1 {
        stride += 1;
    }
    stride
}

fn greatest_common_divisor(mut left: u64, mut right: u64) -> u64 {
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(distribution: Distribution, count: u64, seed: u64, length: usize) -> Vec<u64> {
        Keys::new(distribution, count, seed).unwrap().take(length).collect()
    }

    #[test]
    fn same_seed_gives_same_sequence() {
        for distribution in [Distribution::Uniform, Distribution::Zipf(0.99)] {
            let first = draws(distribution, 1000, 7, 5000);
            assert_eq!(first, draws(distribution, 1000, 7, 5000));
            assert_ne!(first, draws(distribution, 1000, 8, 5000));
            assert!(first.iter().all(|&key| key < 1000));
        }
    }

    #[test]
    fn once_visits_each_object_once() {
        assert_eq!(draws(Distribution::Once, 3, 0, 9), [0, 1, 2]);
    }

    #[test]
    fn uniform_is_even() {
        let mut counts = [0u32; 16];
        for key in draws(Distribution::Uniform, 16, 1, 160_000) {
            counts[key as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }

    #[test]
    fn zipf_has_the_skew_it_says() {
        for theta in [0.5, 0.99, 1.0, 1.3] {
            let count = 100_u64;
            let length = 400_000;
            let zipf = Zipf::new(count, theta);
            let mut random = fastrand::Rng::with_seed(3);
            let mut counts = vec![0u32; count as usize];
            for _ in 0..length {
                counts[zipf.rank(&mut random) as usize - 1] += 1;
            }
            let total: f64 = (1..=count).map(|rank| (rank as f64).powf(-theta)).sum();
            for rank in [1_u64, 2, 3, 10, 50, 100] {
                let expected = f64::from(length) * (rank as f64).powf(-theta) / total;
                let actual = f64::from(counts[rank as usize - 1]);
                // Six standard deviations of a count.
                assert!(
                    (actual - expected).abs() < 6.0 * expected.sqrt(),
                    "theta {theta} rank {rank}: {actual} for {expected}"
                );
            }
        }
    }

    #[test]
    fn scatter_is_a_permutation() {
        for count in [1, 2, 7, 64, 1000, 16_384] {
            let zipf = Zipf::new(count, 0.9);
            let mut seen: Vec<u64> = (0..count).map(|rank| zipf.scatter(rank)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..count), "count {count}");
        }
    }

    #[test]
    fn senseless_parameters_are_refused() {
        assert!(Keys::new(Distribution::Uniform, 0, 0).is_err());
        assert!(Keys::new(Distribution::Zipf(0.0), 1, 0).is_err());
        assert!(Keys::new(Distribution::Zipf(f64::NAN), 1, 0).is_err());
    }
}
