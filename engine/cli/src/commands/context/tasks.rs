//! Texts of every length with their facts, and the prompts that ask for them.

use std::num::NonZeroUsize;
use std::time::{SystemTime, UNIX_EPOCH};

use engine_core::text::{ChatTemplate, CivilTime, Message, RenderOptions, SpeechFormat, TextError, Tokenizer};
use serde_json::Value;

use super::corpus::{self, Corpus, Fact, Planting, Text};
use super::language::Language;
use crate::args::Context;
use crate::failure::Failure;

/// More answers than these tell no more.
const ROUNDS_MAX: usize = 1000;

/// A text with facts, and a question about each of them.
pub(super) struct Task {
    /// Index into the lengths.
    pub(super) length: usize,
    pub(super) round: usize,
    /// What the prompts of all questions begin with: all of the text.
    pub(super) shared: Vec<u32>,
    pub(super) questions: Vec<Question>,
}

impl Task {
    /// Tokens that its prompts have together, those that they share once.
    pub(super) fn tokens_to_read(&self) -> usize {
        self.shared.len() + self.questions.iter().map(|question| question.rest.len()).sum::<usize>()
    }
}

/// A fact is asked for.
pub(super) struct Question {
    /// Index into the depths.
    pub(super) depth: usize,
    pub(super) fact: Fact,
    /// The prompt after what is shared; never empty.
    pub(super) rest: Vec<u32>,
    /// The last characters of the prompt, from which an answer's format is seen.
    pub(super) prompt_end: String,
    /// Tokens of the text before the fact, and in all.
    pub(super) planted: (usize, usize),
}

/// How a question is put to a model, and what of its turn is the answer.
pub(super) struct Asking<'t> {
    language: Language,
    pub(super) tokenizer: &'t Tokenizer,
    chat: Option<(ChatTemplate, RenderOptions)>,
}

impl<'t> Asking<'t> {
    pub(super) fn new(arguments: &Context, tokenizer: &'t Tokenizer) -> Result<Self, Failure> {
        let chat = match ChatTemplate::from_dir(&arguments.model) {
            Ok(template) => {
                // Some templates write the date; all prompts of a run have the same.
                let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let now = i64::try_from(seconds).ok().map(|seconds| CivilTime::from_unix(seconds, 0));
                // A code is found without long thoughts, where a model can be asked for none.
                let extra = [("reasoning_effort".to_owned(), Value::from("low"))].into_iter().collect();
                let enable_thinking = Some(false);
                let asked =
                    RenderOptions { add_generation_prompt: true, now, enable_thinking, extra, ..Default::default() };
                Some((template, asked))
            }
            Err(TextError::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { language: arguments.language, tokenizer, chat })
    }

    /// A text, then the question about one of its facts.
    fn prompt(&self, text: &str, subject: &str) -> Result<Vec<u32>, Failure> {
        let introduction = self.language.introduction();
        Ok(match &self.chat {
            Some((template, options)) => {
                let content = format!("{introduction}\n\n{text}\n\n{}", self.language.question(subject));
                template.render_to_tokens(self.tokenizer, &[Message::new("user", content)], options)?
            }
            None => {
                let prompt = format!("{introduction}\n\n{text}\n\n{}", self.language.completion(subject));
                self.tokenizer.encode(&prompt, true)?
            }
        })
    }

    /// Whether there is a chat template.
    pub(super) fn is_chat(&self) -> bool {
        self.chat.is_some()
    }

    pub(super) fn format(&self) -> Result<SpeechFormat, Failure> {
        match &self.chat {
            Some((template, options)) => Ok(template.speech_format(options)?),
            None => Ok(SpeechFormat::PLAIN),
        }
    }
}

/// All texts and questions of a run. A round has the same facts at every length.
pub(super) fn all(arguments: &Context, asking: &Asking, lengths: &[usize]) -> Result<Vec<Task>, Failure> {
    let depths = &arguments.depths.0;
    let in_one = arguments.facts_per_context.map_or(depths.len(), NonZeroUsize::get);
    if in_one > depths.len() {
        let why =
            format!("`--facts-per-context {in_one}`: a text has one fact at most at each of {} depths", depths.len());
        return Err(Failure::Usage(why));
    }
    if arguments.rounds.get() > ROUNDS_MAX {
        return Err(Failure::Usage(format!("`--rounds {}`: at most {ROUNDS_MAX} are asked", arguments.rounds)));
    }
    let texts = depths.len().div_ceil(in_one);
    let mut tasks = Vec::new();
    for round in 0..arguments.rounds.get() {
        let seed = arguments.seed.wrapping_add(round as u64);
        let facts = corpus::facts(arguments.language, seed, depths.len());
        let mut filler = Corpus::new(arguments.language, seed);
        for (length, tokens) in lengths.iter().enumerate() {
            for first in 0..texts {
                let of_text: Vec<usize> = (first..depths.len()).step_by(texts).collect();
                let plantings: Vec<Planting> = of_text
                    .iter()
                    .map(|depth| Planting { fact: &facts[*depth], depth: depths[*depth] / 100.0 })
                    .collect();
                let room = tokens.saturating_sub(arguments.max_tokens.get());
                let Fitted { text, prompts } = fit(&mut filler, asking, &plantings, room)?.ok_or_else(|| {
                    Failure::Usage(format!(
                        "`--lengths {tokens}` has no room for a text with {} facts, a question and {} tokens of its answer; raise it, or lower `--facts-per-context`",
                        plantings.len(), arguments.max_tokens
                    ))
                })?;
                tasks.push(task(length, round, asking.tokenizer, &of_text, &plantings, &text, &prompts)?);
            }
        }
    }
    // Short texts first, in all rounds: what fails soon is seen soon.
    tasks.sort_by_key(|task| task.length);
    Ok(tasks)
}

/// A text that fits, and its prompts, one a fact.
struct Fitted {
    text: Text,
    prompts: Vec<Vec<u32>>,
}

/// The longest text whose prompts have at most `room` tokens.
fn fit(corpus: &mut Corpus, asking: &Asking, plantings: &[Planting], room: usize) -> Result<Option<Fitted>, Failure> {
    let tokenizer = asking.tokenizer;
    let prompts = |text: &str| -> Result<Vec<Vec<u32>>, Failure> {
        plantings.iter().map(|planting| asking.prompt(text, &planting.fact.subject)).collect()
    };
    let longest = |prompts: &[Vec<u32>]| prompts.iter().map(Vec::len).max().unwrap_or(0);
    // Of the questions one is the longest whatever the text: only that one is put behind every text that is tried.
    let alone = prompts("")?;
    let Some(planting) =
        plantings.iter().zip(&alone).max_by_key(|(_, prompt)| prompt.len()).map(|(planting, _)| planting)
    else {
        return Ok(None);
    };
    let sentence = |text: &str| Ok(tokenizer.encode_text_only(text)?.len());
    // Should the end of a text make another question longer after all, the next text is shorter by as much.
    for spare in 0..8 {
        let room = room.saturating_sub(spare);
        let whole = |text: &str| Ok::<_, Failure>(asking.prompt(text, &planting.fact.subject)?.len());
        let Some(text) = corpus.fit(plantings, room, sentence, whole)? else { return Ok(None) };
        let prompts = prompts(&text.text)?;
        if longest(&prompts) <= room + spare {
            return Ok(Some(Fitted { text, prompts }));
        }
    }
    Ok(None)
}

fn task(
    length: usize,
    round: usize,
    tokenizer: &Tokenizer,
    depths: &[usize],
    plantings: &[Planting],
    text: &Text,
    prompts: &[Vec<u32>],
) -> Result<Task, Failure> {
    let tokens = |text: &str| Ok::<_, Failure>(tokenizer.encode_text_only(text)?.len());
    let all = tokens(&text.text)?;
    // Some token of each prompt has to be computed for the logits after it.
    let most = prompts.iter().map(|prompt| prompt.len().saturating_sub(1)).min().unwrap_or(0);
    let same = |index: &usize| prompts.iter().all(|prompt| prompt[*index] == prompts[0][*index]);
    let count = (0..most).take_while(same).count();
    let shared = prompts.first().map_or(Vec::new(), |prompt| prompt[..count].to_vec());
    let mut questions = Vec::new();
    for (((prompt, planting), offset), depth) in prompts.iter().zip(plantings).zip(&text.offsets).zip(depths) {
        questions.push(Question {
            depth: *depth,
            fact: planting.fact.clone(),
            rest: prompt[count..].to_vec(),
            prompt_end: tokenizer.decode_end(prompt)?,
            planted: (tokens(&text.text[..*offset])?, all),
        });
    }
    Ok(Task { length, round, shared, questions })
}
