//! `perplexity`: how well a model foretells a text, as llama-perplexity measures it.
//!
//! A token that is scored needs context before it, so the text is read in windows, and of each window only its end is
//! scored: of windows side by side the second half, with `--stride` the tokens that the window before has not scored. Every
//! window begins with the token that the tokenizer puts before a text, where it has one, in place of the window's own
//! first. Control tokens in the text are characters, and one line break at its end is dropped, as in llama.cpp.
//!
//! For strided windows llama.cpp takes a larger context than it is asked for, leaves out a window that ends with the text,
//! and puts no token before them. Here a window is what `--ctx-size` says, and all windows of the text count. What
//! `llama-perplexity -c N -b N --ppl-stride S` computes has windows of N + S / 2 tokens, rounded up to a multiple of 256.
//!
//! SmolLM2-135M in float32 on 8,611 tokens: 56.7722 here and there with keys and values in float32, 56.7726 and 56.7714
//! with F16; strided on 2,671 tokens in windows of 768 (there `-c 512 -b 512 --ppl-stride 256`), 46.4801 and 46.4801.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::ops::Range;

use engine_core::session::Evaluator;
use engine_core::text::Tokenizer;
use serde_json::json;

use crate::args::{Format, Perplexity};
use crate::failure::Failure;
use crate::load_choice::Work;
use crate::model::{self, Loaded, LogitRows, Opened};
use crate::nodes;
use crate::output::print;
use crate::progress::{Progress, Unit};

/// What the tokenizer takes at once.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// llama-perplexity's: values of other windows are not comparable.
const DEFAULT_WINDOW: usize = 512;

/// Where windows lie in a text, and which of their tokens are scored.
struct Windows {
    size: usize,
    stride: usize,
    /// Tokens at the beginning of a window that are context.
    context: usize,
    count: usize,
}

impl Windows {
    fn new(tokens: usize, size: usize, stride: Option<usize>) -> Result<Self, Failure> {
        let usage = |why: String| Err(Failure::Usage(why));
        let context = match stride {
            // The token after the first half is context, too: llama.cpp scores what follows the positions from size / 2 on.
            None => size / 2 + 1,
            Some(stride) => size.saturating_sub(stride),
        };
        if context == 0 || context >= size {
            return match stride {
                None => usage(format!("`--ctx-size {size}`: windows of at least 3 tokens have one to score")),
                Some(stride) => usage(format!("`--stride {stride}` leaves no context in windows of {size} tokens")),
            };
        }
        let Some(rest) = tokens.checked_sub(size) else {
            let why = "one window at least is needed; give a longer text or a smaller `--ctx-size`";
            return usage(format!("the text has {tokens} tokens, a window {size}: {why}"));
        };
        let stride = stride.unwrap_or(size);
        Ok(Self { size, stride, context, count: rest / stride + 1 })
    }

    fn all(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.count).map(|window| window * self.stride..window * self.stride + self.size)
    }
}

/// Mean and spread of the negative log-likelihoods, in the order of the tokens (Welford's recurrence).
#[derive(Default)]
struct Score {
    tokens: u64,
    nll: f64,
    squares: f64,
}

impl Score {
    fn add(&mut self, nll: f64) {
        self.tokens += 1;
        let before = nll - self.nll;
        self.nll += before / self.tokens as f64;
        self.squares += before * (nll - self.nll);
    }

    fn ppl(&self) -> f64 {
        self.nll.exp()
    }

    /// Standard error of the perplexity, to first order; one token has none.
    fn standard_error(&self) -> Option<f64> {
        let n = self.tokens as f64;
        (self.tokens > 1).then(|| (self.squares / n / (n - 1.0)).sqrt() * self.ppl())
    }
}

/// Negative logarithm of the probability of `token`, in nats. By `libm`, whose exponentials are the same everywhere.
fn negative_log_likelihood(logits: &[f32], token: u32) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(*logit) - most)).sum();
    libm::log(sum) + most - f64::from(logits[token as usize])
}

pub(crate) fn run(arguments: &Perplexity) -> Result<(), Failure> {
    let text = text(arguments)?;
    model::check_folder(&arguments.model)?;
    let tokenizer = Tokenizer::from_dir(&arguments.model)?;
    let bos = bos(&tokenizer)?;
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode_text_only(&text)?);

    let size = arguments.run.ctx_size.map_or(DEFAULT_WINDOW, NonZeroUsize::get);
    let windows = Windows::new(tokens.len(), size, arguments.stride.map(NonZeroUsize::get))?;
    // Nothing is predicted from a window's last token.
    let fed = windows.size - 1;
    let run = arguments.run.with_ctx_size(NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN));
    let work = Work::Tokens { prompt: windows.count.saturating_mul(fed), generate: 0 };
    let opened = Opened::new(&arguments.model, &run, 1, LogitRows::All, work)?;
    let (vocab_size, request) = (opened.checkpoint.config().vocab_size, opened.request);
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
        let why =
            format!("tokenizer.json makes token {token} of the text, but the model has a vocabulary of {vocab_size}");
        return Err(Failure::Failed(why.into()));
    }
    let loaded = opened.load()?;
    let adapters = loaded.adapter_set()?;
    let Loaded { model, pool, .. } = loaded;
    let _pin = nodes::pin_caller(&pool)?;
    let mut evaluator = Evaluator::new(&model, pool, request.kv_dtype, size, request.ubatch_size)?;
    evaluator.choose_adapters(adapters);
    nodes::report_placement(model.placement(), evaluator.kv_placement());

    let mut progress = Progress::new("perplexity", Unit::Tokens, (windows.count * fed) as u64);
    let mut score = Score::default();
    let mut of_window = Vec::with_capacity(windows.size);
    for (index, window) in windows.all().enumerate() {
        of_window.clear();
        of_window.extend_from_slice(&tokens[window]);
        if let Some(bos) = bos {
            of_window[0] = bos;
        }
        evaluator.restart();
        let isa = model.options().isa;
        let of_position = |position: usize, logits: &[f32]| {
            let finite = simd::elementwise::all_finite(isa, logits);
            finite.then(|| negative_log_likelihood(logits, of_window[position + 1]))
        };
        evaluator.map_from(&of_window[..fed], windows.context - 1, of_position, |position, nll| {
            let Some(nll) = nll else {
                let why = format!(
                    "logits at position {position} of window {} are not all finite; a cache of float32 has a wider range (-ctk f32)",
                    index + 1
                );
                return Err(Failure::Failed(why.into()));
            };
            score.add(nll);
            progress.set((index * fed + position + 1) as u64);
            Ok(())
        })?;
        progress.line(&format!("window {} of {}: PPL {:.4}", index + 1, windows.count, score.ppl()));
    }
    drop(progress);
    match arguments.output.output {
        Format::Text => {
            let error = score.standard_error().map_or(String::new(), |error| format!(" ± {error:.4}"));
            let stride = arguments.stride.map_or(String::new(), |stride| format!(", stride {stride}"));
            let (ppl, tokens, count) = (score.ppl(), score.tokens, windows.count);
            print(format_args!("PPL = {ppl:.4}{error}, {tokens} tokens scored, {count} windows of {size}{stride}\n"))
        }
        Format::Json => {
            let document = json!({
                "ppl": score.ppl(),
                "stderr": score.standard_error(),
                "nll": score.nll,
                "tokens": score.tokens,
                "windows": windows.count,
                "ctx_size": size,
                "stride": arguments.stride,
            });
            print(format_args!("{document}\n"))
        }
    }
}

fn text(arguments: &Perplexity) -> Result<String, Failure> {
    let path = &arguments.file;
    let usage = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| usage(error.to_string()))?;
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| usage(error.to_string()))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(usage(format!("it has more than the {TEXT_BYTES_MAX} bytes that are tokenized at once; cut it")));
    }
    let mut text = String::from_utf8(text).map_err(|error| usage(format!("it is not UTF-8: {error}")))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// The token that the tokenizer puts before a text, if it does.
fn bos(tokenizer: &Tokenizer) -> Result<Option<u32>, Failure> {
    let text = "a";
    let (plain, whole) = (tokenizer.encode(text, false)?, tokenizer.encode(text, true)?);
    match whole.as_slice() {
        same if same == plain => Ok(None),
        [bos, rest @ ..] if rest == plain => Ok(Some(*bos)),
        _ => {
            let why = "adds more to a text than one token before it; a text in windows cannot be given that";
            Err(Failure::Failed(format!("the post-processor of tokenizer.json {why}").into()))
        }
    }
}
