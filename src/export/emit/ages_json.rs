//! Ages of the live bytes of a row → the members that its JSON has for them.
//!
//! Pure functions on values.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::analyze::ages::{AGES, AgeBounds};
use crate::analyze::collector::RowAges;

/// Members of a row: its live bytes by age, each as the least and the most that is possible.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct AgesOfRow {
    ages: ByAge,
    old_bytes: [u64; 2],
    leak_score: Option<f64>,
    /// Live bytes of all ages, where the figures of the row are of old blocks alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    live_bytes: Option<u64>,
}

impl AgesOfRow {
    /// Returns the members of a row that shows `size` bytes.
    pub(crate) fn of(ages: &RowAges, size: u64) -> AgesOfRow {
        let RowAges { live_bytes, old, ages, leak_score } = ages;
        AgesOfRow {
            ages: ByAge::of(*live_bytes, ages),
            old_bytes: [old.lower_bytes, old.upper_bytes],
            leak_score: *leak_score,
            live_bytes: Some(*live_bytes).filter(|live| *live != size),
        }
    }
}

/// Bytes of the blocks between two ages.
#[derive(Debug, PartialEq, Serialize)]
struct ByAge {
    #[serde(rename = "<1m")]
    below_1m: [u64; 2],
    #[serde(rename = "<10m")]
    below_10m: [u64; 2],
    #[serde(rename = "<1h")]
    below_1h: [u64; 2],
    #[serde(rename = "<6h")]
    below_6h: [u64; 2],
    #[serde(rename = "<1d")]
    below_1d: [u64; 2],
    #[serde(rename = ">=1d")]
    from_1d: [u64; 2],
}

impl ByAge {
    /// Returns the bytes between each two ages, from those that are older than each.
    fn of(live: u64, older: &[AgeBounds; AGES.len()]) -> ByAge {
        let [of_1m, of_10m, of_1h, of_6h, of_1d] = older.map(|age| [age.lower_bytes, age.upper_bytes]);
        let between = |[least, most]: [u64; 2], [least_older, most_older]: [u64; 2]| {
            [least.saturating_sub(most_older), most.saturating_sub(least_older)]
        };
        ByAge {
            below_1m: between([live; 2], of_1m),
            below_10m: between(of_1m, of_10m),
            below_1h: between(of_10m, of_1h),
            below_6h: between(of_1h, of_6h),
            below_1d: between(of_6h, of_1d),
            from_1d: of_1d,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_between_two_ages_are_told_from_those_older_than_each() {
        let bounds = |lower_bytes, upper_bytes| AgeBounds { lower_bytes, upper_bytes };
        let ages = RowAges {
            live_bytes: 100,
            old: bounds(60, 70),
            ages: [bounds(80, 95), bounds(80, 80), bounds(60, 70), bounds(50, 50), bounds(0, 10)],
            leak_score: Some(0.97),
        };
        assert_eq!(
            serde_json::to_string(&AgesOfRow::of(&ages, 100)).unwrap(),
            "{\"ages\":{\"<1m\":[5,20],\"<10m\":[0,15],\"<1h\":[10,20],\"<6h\":[10,20],\"<1d\":[40,50],\">=1d\":[0,10]},\
             \"old_bytes\":[60,70],\"leak_score\":0.97}"
        );
        // Where only old blocks are shown, the bytes of all ages are said beside them.
        let text = serde_json::to_string(&AgesOfRow::of(&RowAges { leak_score: None, ..ages }, 60)).unwrap();
        assert!(text.ends_with(",\"leak_score\":null,\"live_bytes\":100}"), "{text}");
    }

    /// The least and the most of each age add up around the live bytes, whatever is known.
    #[test]
    fn the_ages_of_a_row_are_bounds_of_its_live_bytes() {
        let mut random = crate::base::random_input::Random::new();
        for _ in 0..crate::base::random_input::inputs(10_000) {
            let live_bytes = random.edge() % (1 << 40);
            // Older than an age is no more than older than a lesser one.
            let (mut least, mut most) = (live_bytes, live_bytes);
            let ages = [(); AGES.len()].map(|()| {
                most = random.edge() % (most + 1);
                least = (random.edge() % (least + 1)).min(most);
                AgeBounds { lower_bytes: least, upper_bytes: most }
            });
            let json = serde_json::to_value(ByAge::of(live_bytes, &ages)).unwrap();
            let sum = |bound: usize| -> u64 {
                json.as_object().unwrap().values().map(|age| age[bound].as_u64().unwrap()).sum()
            };
            assert!(sum(0) <= live_bytes && live_bytes <= sum(1), "{live_bytes} {json}");
        }
    }
}
