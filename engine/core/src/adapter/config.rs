//! adapter_config.json: rank, alpha and targets, and the refusal by name of everything that computes otherwise.
//!
//! Patterns mean what they mean to PEFT: a list holds ends of module names, a string is a Python regular expression for
//! the whole name, and the keys of `rank_pattern` and `alpha_pattern` are expressions for its end. Field names are PEFT's.

use std::path::Path;

use fancy_regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::AdapterError;
use crate::checkpoint::header::printable;

/// No adapter that was ever published has a greater one; it bounds what a hostile file can ask for.
pub(super) const RANK_MAX: usize = 4096;

/// Steps that an expression of unknown origin may take on one module name.
const BACKTRACK_LIMIT: usize = 100_000;

/// Fields of training, of names and of versions: they change no product.
const WITHOUT_EFFECT: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Fields that are read here.
const READ: [&str; 15] = [
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "use_rslora",
    "fan_in_fan_out",
];

/// Other methods under the roof of `LORA`, with what they are.
const OTHER_METHODS: [(&str, &str); 9] = [
    ("use_dora", "DoRA, which scales every row of a weight"),
    ("lora_bias", "biases of the low-rank matrices"),
    ("trainable_token_indices", "single rows of the embedding"),
    ("layer_replication", "layers that stand several times in the model"),
    ("alora_invocation_tokens", "activated LoRA"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("ensure_weight_tying", "replaced weights that stay tied"),
    ("fan_in_fan_out", "weights that are stored transposed"),
];

/// What adapter_config.json says.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    r: usize,
    lora_alpha: f64,
    use_rslora: bool,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    targets: Targets,
    excluded: Option<Targets>,
    /// Layers that a list of targets is for, `None` for all.
    layers: Option<Vec<usize>>,
    layers_pattern: Vec<Regex>,
    target_parameters: Vec<String>,
    modules_to_save: Vec<String>,
}

/// Modules, by name.
#[derive(Debug)]
enum Targets {
    /// Ends of names, whole parts.
    Ends(Vec<String>),
    /// The whole name.
    Whole(Box<Regex>),
    /// Every matrix but the output matrix.
    AllLinear,
}

impl AdapterConfig {
    /// Reads and checks the settings in `json`, which stood at `path`.
    pub(super) fn from_json(path: &Path, json: &[u8]) -> Result<Self, AdapterError> {
        let object: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|error| AdapterError::Json { path: path.into(), why: printable(&error.to_string()) })?;
        let fields = Fields { path, object };
        fields.refuse_other_methods()?;
        let layers = fields.layers("layers_to_transform")?;
        let layers_pattern = fields
            .strings("layers_pattern")?
            .iter()
            .map(|pattern| fields.expression("layers_pattern", &format!(r"\A(?:|.*?\.)(?:{pattern})\.(\d+)\.")))
            .collect::<Result<_, _>>()?;
        let rank = |value: &Value| value.as_u64().map(|r| r as usize).filter(|r| (1..=RANK_MAX).contains(r));
        let alpha = |value: &Value| value.as_f64().filter(|alpha| (*alpha as f32).is_finite());
        Ok(Self {
            r: fields.number("r", &rank, &format!("a whole number from 1 to {RANK_MAX}"))?,
            lora_alpha: fields.number("lora_alpha", &alpha, "a number")?,
            use_rslora: fields.flag("use_rslora")?,
            rank_pattern: fields.pattern("rank_pattern", &rank)?,
            alpha_pattern: fields.pattern("alpha_pattern", &alpha)?,
            targets: fields.targets("target_modules")?.unwrap_or(Targets::Ends(Vec::new())),
            excluded: fields.targets("exclude_modules")?,
            layers,
            layers_pattern,
            target_parameters: fields.strings("target_parameters")?,
            modules_to_save: fields.strings("modules_to_save")?,
        })
    }

    /// The rank that `key`, a module or a parameter, should have.
    pub(super) fn rank(&self, key: &str) -> usize {
        first_match(&self.rank_pattern, key).unwrap_or(self.r)
    }

    /// Factor of the product of a pair: `alpha / r`, or `alpha / sqrt(r)` with `use_rslora`.
    pub(super) fn scaling(&self, key: &str) -> f64 {
        let (r, alpha) = (self.rank(key) as f64, first_match(&self.alpha_pattern, key).unwrap_or(self.lora_alpha));
        if self.use_rslora { alpha / r.sqrt() } else { alpha / r }
    }

    /// Whether `target_modules` means the module `name`.
    pub(super) fn targets_module(&self, name: &str) -> bool {
        let is_named = match &self.targets {
            Targets::Ends(ends) => ends_with_any(name, ends) && self.is_in_layers(name),
            targets => targets.matches(name),
        };
        is_named && !self.excluded.as_ref().is_some_and(|excluded| excluded.matches(name))
    }

    /// Whether `target_parameters` means the parameter `name`.
    pub(super) fn targets_parameter(&self, name: &str) -> bool {
        ends_with_any(name, &self.target_parameters)
    }

    /// The first of `modules_to_save` that none of `modules` is, or is part of.
    pub(super) fn unsaved(&self, modules: &[&str]) -> Option<&str> {
        let is_of = |module: &str, name: &str| format!(".{module}.").contains(&format!(".{name}."));
        let mut names = self.modules_to_save.iter().map(String::as_str);
        names.find(|name| !modules.iter().any(|module| is_of(module, name)))
    }

    fn is_in_layers(&self, name: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let index = match &self.layers_pattern[..] {
            // The first part that is a number, with something before it.
            [] => name.split('.').skip(2).find_map(|part| part.parse().ok()),
            patterns => patterns.iter().find_map(|pattern| {
                pattern.captures(name).ok().flatten().and_then(|found| found.get(1)?.as_str().parse().ok())
            }),
        };
        index.is_some_and(|index| layers.contains(&index))
    }
}

impl Targets {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Ends(ends) => ends_with_any(name, ends),
            // An expression that gives up matches nothing, and then a tensor has no target, which is told.
            Self::Whole(expression) => expression.is_match(name).unwrap_or(false),
            Self::AllLinear => name != "lm_head",
        }
    }
}

fn ends_with_any(name: &str, ends: &[String]) -> bool {
    ends.iter().any(|end| name == end || name.strip_suffix(end.as_str()).is_some_and(|rest| rest.ends_with('.')))
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], key: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(key).unwrap_or(false)).map(|(_, value)| *value)
}

/// Typed access to the fields, so that every refusal names one.
struct Fields<'a> {
    path: &'a Path,
    object: Map<String, Value>,
}

impl Fields<'_> {
    /// The field, if it says anything: `null`, `false` and what is empty are as good as absent.
    fn get(&self, name: &str) -> Option<&Value> {
        self.object.get(name).filter(|value| says_something(value))
    }

    fn wrong(&self, field: &str, why: String) -> AdapterError {
        AdapterError::Field { path: self.path.into(), field: printable(field), why: printable(&why) }
    }

    fn unsupported(&self, field: &str, what: String, help: &'static str) -> AdapterError {
        AdapterError::Unsupported { path: self.path.into(), field: printable(field), what: printable(&what), help }
    }

    fn refuse_other_methods(&self) -> Result<(), AdapterError> {
        match self.get("peft_type") {
            Some(Value::String(method)) if method == "LORA" => {}
            Some(other) => {
                let help = "PEFT's `save_as_lora` turns some other methods into LoRA";
                return Err(self.unsupported("peft_type", other.to_string(), help));
            }
            None => return Err(self.wrong("peft_type", "is missing; an adapter says \"LORA\"".into())),
        }
        for (field, what) in OTHER_METHODS {
            if self.get(field).is_some() {
                return Err(self.unsupported(
                    field,
                    what.into(),
                    "train without it, or merge the adapter into the model",
                ));
            }
        }
        if let Some(bias) = self.get("bias").filter(|bias| bias.as_str() != Some("none")) {
            return Err(self.unsupported("bias", format!("{bias}: trained biases"), "train with bias \"none\""));
        }
        // These change the base weights before training, so the pairs alone do not say what was learnt.
        let harmless = ["gaussian", "orthogonal", "eva"];
        if let Some(Value::String(init)) = self.get("init_lora_weights")
            && !harmless.contains(&init.as_str())
        {
            let help = "save it with `path_initial_model_for_weight_conversion`, which makes it plain LoRA";
            return Err(self.unsupported("init_lora_weights", format!("{init}, which changes the base weights"), help));
        }
        let known = |name: &str| WITHOUT_EFFECT.contains(&name) || READ.contains(&name);
        match self.object.iter().find(|(name, value)| !known(name) && says_something(value)) {
            None => Ok(()),
            Some((name, value)) => {
                let help = "a version that knows this field is needed";
                Err(self.unsupported(name, value.to_string(), help))
            }
        }
    }

    fn flag(&self, name: &str) -> Result<bool, AdapterError> {
        match self.object.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, format!("is {other}; it must be true or false"))),
        }
    }

    fn number<T>(&self, name: &str, read: &impl Fn(&Value) -> Option<T>, kind: &str) -> Result<T, AdapterError> {
        let Some(value) = self.object.get(name) else { return Err(self.wrong(name, "is missing".into())) };
        read(value).ok_or_else(|| self.wrong(name, format!("is {value}; it must be {kind}")))
    }

    /// One string, or a list of them.
    fn strings(&self, name: &str) -> Result<Vec<String>, AdapterError> {
        let wrong = |value: &Value| self.wrong(name, format!("holds {value}; it must hold names"));
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            Some(Value::Array(list)) => {
                list.iter().map(|entry| entry.as_str().map(str::to_owned).ok_or_else(|| wrong(entry))).collect()
            }
            Some(other) => Err(wrong(other)),
        }
    }

    fn targets(&self, name: &str) -> Result<Option<Targets>, AdapterError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(all)) if all == "all-linear" => Ok(Some(Targets::AllLinear)),
            Some(Value::String(whole)) => {
                Ok(Some(Targets::Whole(Box::new(self.expression(name, &format!(r"\A(?:{whole})\z"))?))))
            }
            Some(_) => Ok(Some(Targets::Ends(self.strings(name)?))),
        }
    }

    fn layers(&self, name: &str) -> Result<Option<Vec<usize>>, AdapterError> {
        let index = |value: &Value| {
            let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
            index.ok_or_else(|| self.wrong(name, format!("holds {value}; it must hold layers, from 0")))
        };
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list.iter().map(index).collect::<Result<_, _>>()?)),
            Some(one) => Ok(Some(vec![index(one)?])),
        }
    }

    fn pattern<T>(&self, name: &str, read: &impl Fn(&Value) -> Option<T>) -> Result<Vec<(Regex, T)>, AdapterError> {
        let object = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(self.wrong(name, format!("is {other}; it must be an object"))),
        };
        let entry = |(key, value): (&String, &Value)| {
            let read = read(value).ok_or_else(|| self.wrong(name, format!("gives {value} to `{key}`")))?;
            Ok((self.expression(name, &format!(r"\A(?:.*\.)?(?:{key})$"))?, read))
        };
        object.iter().map(entry).collect()
    }

    fn expression(&self, name: &str, expression: &str) -> Result<Regex, AdapterError> {
        let built = RegexBuilder::new(expression).backtrack_limit(BACKTRACK_LIMIT).delegate_size_limit(1 << 20).build();
        built.map_err(|error| self.wrong(name, format!("holds an expression that cannot be used: {error}")))
    }
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(changes: Value) -> Result<AdapterConfig, AdapterError> {
        let mut all =
            json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"});
        for (name, value) in changes.as_object().unwrap() {
            all[name] = value.clone();
        }
        AdapterConfig::from_json(Path::new("adapter_config.json"), all.to_string().as_bytes())
    }

    #[test]
    fn targets_are_ends_of_names_whole_expressions_or_all() {
        let q = "model.layers.3.self_attn.q_proj";
        for (targets, yes, no) in [
            (json!(["q_proj"]), q, "model.layers.3.self_attn.xq_proj"),
            (json!(["3.self_attn.q_proj"]), q, "model.layers.13.self_attn.q_proj"),
            (json!(r".*\.(q|v)_proj"), q, "model.layers.3.self_attn.k_proj"),
            (json!(r"(?!.*mlp).*_proj"), q, "model.layers.3.mlp.up_proj"),
            (json!("self_attn"), "self_attn", q),
            (json!("all-linear"), q, "lm_head"),
        ] {
            let config = parse(json!({"target_modules": targets})).unwrap();
            assert!(config.targets_module(yes), "{targets} means {yes}");
            assert!(!config.targets_module(no), "{targets} does not mean {no}");
        }
        let config = parse(json!({"exclude_modules": ["3.self_attn.q_proj"]})).unwrap();
        assert!(!config.targets_module(q) && config.targets_module("model.layers.4.self_attn.q_proj"));
    }

    #[test]
    fn layers_are_counted_by_the_first_number_of_a_name() {
        let config = parse(json!({"layers_to_transform": [1, 2], "target_modules": ["up_proj"]})).unwrap();
        assert!(config.targets_module("model.layers.1.mlp.experts.0.up_proj"));
        assert!(!config.targets_module("model.layers.0.mlp.experts.1.up_proj"));
        let config = parse(json!({"layers_to_transform": 1, "layers_pattern": "layers"})).unwrap();
        assert!(config.targets_module("model.layers.1.self_attn.q_proj"));
        assert!(!config.targets_module("model.layers.11.self_attn.q_proj"));
    }

    #[test]
    fn patterns_change_rank_and_alpha_of_some_modules() {
        let config =
            parse(json!({"rank_pattern": {"v_proj": 4, "layers.0.*q_proj": 2}, "alpha_pattern": {"v_proj": 3}}));
        let config = config.unwrap();
        assert_eq!(config.rank("model.layers.5.self_attn.v_proj"), 4);
        assert_eq!(config.rank("model.layers.0.self_attn.q_proj"), 2);
        assert_eq!(config.rank("model.layers.1.self_attn.q_proj"), 8);
        assert_eq!(config.scaling("model.layers.5.self_attn.v_proj"), 0.75);
        assert_eq!(config.scaling("model.layers.0.self_attn.q_proj"), 8.0);
        assert_eq!(parse(json!({"use_rslora": true})).unwrap().scaling("q"), 16.0 / 8f64.sqrt());
    }

    #[test]
    fn what_computes_otherwise_is_refused_by_name() {
        for (changes, name) in [
            (json!({"peft_type": "LOHA"}), "LOHA"),
            (json!({"peft_type": null}), "peft_type"),
            (json!({"use_dora": true}), "DoRA"),
            (json!({"bias": "all"}), "bias"),
            (json!({"lora_bias": true}), "lora_bias"),
            (json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "pissa_niter_4"),
            (json!({"something_new": {"rank": 3}}), "something_new"),
            (json!({"r": 0}), "`r`"),
            (json!({"r": 1.5}), "`r`"),
            (json!({"r": 1u64 << 40}), "`r`"),
            (json!({"lora_alpha": "16"}), "lora_alpha"),
            (json!({"rank_pattern": {"(": 3}}), "rank_pattern"),
            (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern"),
            (json!({"target_modules": [3]}), "target_modules"),
            (json!({"target_modules": "(a{1000}){1000}"}), "target_modules"),
            (json!({"layers_to_transform": [-1]}), "layers_to_transform"),
        ] {
            let error = parse(changes.clone()).unwrap_err().to_string();
            assert!(error.contains(name), "{changes}: {error}");
        }
        for changes in
            [json!({"lora_dropout": 0.1}), json!({"init_lora_weights": true}), json!({"something_new": null})]
        {
            parse(changes).unwrap();
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            r"[a-z_.\\\\()|*+?\[\]{}$^0-9]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z_.*(]{0,8}", inner, 0..3).prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        /// Whatever stands in a field is refused or has a meaning.
        #[test]
        fn any_value_of_any_field_is_refused_or_read(field in 0..READ.len(), value in any_value()) {
            if let Ok(config) = parse(json!({READ[field]: value})) {
                let name = "model.layers.3.self_attn.q_proj";
                prop_assert!((1..=RANK_MAX).contains(&config.rank(name)));
                prop_assert!(config.scaling(name).is_finite());
                config.targets_module(name);
                config.targets_parameter(name);
            }
        }
    }

    #[test]
    fn an_expression_that_would_never_end_gives_up() {
        let config = parse(json!({"target_modules": r"(?=(a+)+b)(a+)+c"})).unwrap();
        assert!(!config.targets_module(&"a".repeat(200)));
    }
}
