//! What calls cost. Prices are the user's: they change, and differ by contract.

use super::call::Usage;
use crate::glob::glob;

/// In the order of the configuration: the first that fits holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prices(pub Vec<Price>);

/// Of a million tokens each, in one currency.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    /// `gen_ai.provider.name`; `None`: any.
    pub provider: Option<String>,
    /// A pattern of the model's name.
    pub model: String,
    pub currency: &'static str,
    pub input: f64,
    /// Of the input, what is read from a cache and what is written to it.
    pub cache_read: f64,
    pub cache_creation: f64,
    pub output: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub amount: f64,
    pub currency: &'static str,
}

impl Prices {
    /// Of a call to one of these models, by the first name that has a price. `None`: nobody said what it costs, or its
    /// tokens are not all known.
    pub fn cost<'a>(
        &self,
        provider: &str,
        models: impl IntoIterator<Item = &'a str>,
        usage: &Usage,
    ) -> Option<Cost> {
        let fits = |price: &&Price, model: &str| {
            let is_by = price.provider.as_ref().is_none_or(|name| name == provider);
            is_by && glob(&price.model, model)
        };
        let mut models = models.into_iter();
        let price = models.find_map(|model| self.0.iter().find(|price| fits(price, model)))?;
        let input = usage.input?;
        let [read, created] =
            [usage.cache_read, usage.cache_creation].map(Option::unwrap_or_default);
        let output = match usage.output {
            // Nothing comes out of what costs nothing.
            None if price.output == 0.0 => 0,
            output => output?,
        };
        let plain = input.saturating_sub(read.saturating_add(created));
        let parts = [
            (plain, price.input),
            (read, price.cache_read),
            (created, price.cache_creation),
            (output, price.output),
        ];
        let amount: f64 = parts
            .iter()
            .map(|(tokens, price)| *tokens as f64 * price)
            .sum();
        Some(Cost {
            amount: amount / 1e6,
            currency: price.currency,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(provider: Option<&str>, model: &str, input: f64) -> Price {
        Price {
            provider: provider.map(str::to_owned),
            model: model.to_owned(),
            currency: "USD",
            input,
            cache_read: 0.1,
            cache_creation: 4.0,
            output: 10.0,
        }
    }

    fn usage(input: u64, output: u64) -> Usage {
        Usage {
            input: Some(input),
            output: Some(output),
            ..Usage::default()
        }
    }

    fn amount(prices: &Prices, provider: &str, models: &[&str], usage: Usage) -> Option<f64> {
        let cost = prices.cost(provider, models.iter().copied(), &usage);
        cost.map(|cost| (cost.amount * 1e9).round() / 1e9)
    }

    #[test]
    fn every_token_is_paid_once() {
        let prices = Prices(vec![price(None, "gpt-5*", 2.0)]);
        let cached = Usage {
            cache_read: Some(600),
            cache_creation: Some(100),
            reasoning: Some(7),
            ..usage(1000, 20)
        };
        // 300 x 2 + 600 x 0.1 + 100 x 4 + 20 x 10, by the million.
        assert_eq!(
            amount(&prices, "openai", &["gpt-5-mini"], cached),
            Some(0.001_26)
        );
        let odd = Usage {
            cache_read: Some(2000),
            ..usage(1000, 0)
        };
        assert_eq!(amount(&prices, "openai", &["gpt-5"], odd), Some(0.000_2));
    }

    #[test]
    fn the_first_that_fits_holds() {
        let prices = Prices(vec![
            price(Some("azure.ai.openai"), "gpt*", 1.0),
            price(None, "gpt-5", 2.0),
            price(None, "gpt*", 3.0),
        ]);
        let of = |provider, models: &[&str]| amount(&prices, provider, models, usage(1_000_000, 0));
        assert_eq!(of("azure.ai.openai", &["gpt-5"]), Some(1.0));
        assert_eq!(of("openai", &["gpt-5"]), Some(2.0));
        assert_eq!(of("openai", &["gpt-5-2026-01-01", "gpt-5"]), Some(3.0));
        // A deployment may be called what its user likes.
        assert_eq!(of("openai", &["mine", "gpt-5"]), Some(2.0));
        assert_eq!(of("openai", &["claude"]), None);
        assert_eq!(of("openai", &[]), None);
    }

    #[test]
    fn what_is_not_known_has_no_cost() {
        let mut prices = Prices(vec![price(None, "*", 2.0)]);
        let half = Usage {
            output: None,
            ..usage(10, 0)
        };
        assert_eq!(amount(&prices, "a", &["b"], half), None);
        let other = Usage {
            input: None,
            ..usage(0, 10)
        };
        assert_eq!(amount(&prices, "a", &["b"], other), None);
        // Embeddings.
        prices.0[0].output = 0.0;
        assert_eq!(amount(&prices, "a", &["b"], half), Some(0.000_02));
    }
}
