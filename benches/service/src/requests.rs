//! The mix of requests, by their number: the same for all sides, and for the network as without it.

use std::fmt::Write;

/// One request.
pub struct Asked {
    pub method: &'static str,
    pub path: String,
    pub is_gzip: bool,
    /// JSON; empty for none.
    pub body: String,
}

/// The first requests fill the shop with orders.
pub const FILL: u64 = 5_000;

/// Requests of a block, which differ from block to block in their order alone.
const BLOCK: u64 = 20;

/// New orders among them.
const ADDED: u64 = 6;

/// Returns a request of the mix: of 20, 6 new orders, 7 orders by number, 5 searches (one is compressed, one sorted
/// and not cached), 1 page and 1 sum from the database.
pub fn request(number: u64) -> Asked {
    let mut numbers = Numbers(number);
    let Some(later) = number.checked_sub(FILL) else { return added(&mut numbers) };
    let (block, place) = (later / BLOCK, later % BLOCK);
    let mut of_block = Numbers(block ^ 0x005e_ed0f_b10c);
    let step = [1, 3, 7, 9, 11, 13, 17, 19][of_block.below(8) as usize];
    // Some requests are under way, and these orders are always there.
    let newest = FILL + block * ADDED - 100;
    match (place * step + of_block.below(BLOCK)) % BLOCK {
        0..ADDED => added(&mut numbers),
        6..13 => get(format!("/orders/{}", newest - numbers.below(4_000))),
        13..16 => get(format!("/search?customer={}", customer(&mut numbers))),
        16 => Asked { is_gzip: true, ..get(format!("/search?customer={}", customer(&mut numbers))) },
        17 => get(format!("/search?customer={}&sort=total", customer(&mut numbers))),
        18 => get("/recent".into()),
        _ => get(format!("/spent/{}", customer(&mut numbers))),
    }
}

fn get(path: String) -> Asked {
    Asked { method: "GET", path, is_gzip: false, body: String::new() }
}

/// Draws one of 2,000 customers, those with low numbers more often.
fn customer(numbers: &mut Numbers) -> String {
    format!("customer{}", numbers.below(2_000).min(numbers.below(2_000)))
}

fn added(numbers: &mut Numbers) -> Asked {
    let mut body =
        format!(r#"{{"customer":"{}","city":"city{}","items":["#, customer(numbers), numbers.below(90));
    for item in 0..1 + numbers.below(5) {
        let comma = if item == 0 { "" } else { "," };
        write!(
            body,
            r#"{comma}{{"sku":"sku{}","count":{},"price":{}.{:02}"#,
            numbers.below(50_000),
            1 + numbers.below(9),
            numbers.below(400),
            numbers.below(100),
        )
        .expect("a String takes everything");
        if numbers.below(2) == 0 {
            write!(body, r#","tags":["tag{}","tag{}"]"#, numbers.below(30), numbers.below(30))
                .expect("a String takes everything");
        }
        body.push('}');
    }
    body.push(']');
    if numbers.below(3) == 0 {
        write!(
            body,
            r#","notes":{{"gift":"yes","text":"{}"}}"#,
            "for the garden, please. ".repeat(1 + numbers.below(4) as usize)
        )
        .expect("a String takes everything");
    }
    body.push('}');
    Asked { method: "POST", path: "/orders".into(), is_gzip: false, body }
}

/// splitmix64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
