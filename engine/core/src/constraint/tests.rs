//! t
use super::*;
use crate::text::Tokenizer;
use std::time::Instant;
#[test]
fn scratch() {
    let dir = std::path::PathBuf::from(std::env::var("TOK").unwrap());
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let eos = tokenizer.eos_token_ids().to_vec();
    let t = Instant::now();
    let compiler = ConstraintCompiler::new(&tokenizer, &eos).unwrap();
    eprintln!("compiler {:?} vocab {} eos {eos:?}", t.elapsed(), tokenizer.vocab_size());
    let follow = |name: &str, constraint: &Constraint, text: &str| {
        let mut matcher = constraint.begin();
        let ids = tokenizer.encode(text, false).unwrap();
        let mut worst = std::time::Duration::ZERO;
        let (mut all, mut allacc) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
        for id in &ids {
            let t = Instant::now();
            let mask = matcher.mask().unwrap();
            let e = t.elapsed();
            worst = worst.max(e);
            all += e;
            assert!(mask[*id as usize / 32] >> (id % 32) & 1 == 1, "{name}: {id} {:?}", tokenizer.token_text(*id));
            let t = Instant::now();
            matcher.accept(*id).unwrap();
            allacc += t.elapsed();
        }
        eprintln!(
            "{name}: {} tokens, mask mean {:?} worst {worst:?}, accept {:?}; complete {:?}",
            ids.len(),
            all / ids.len() as u32,
            allacc / ids.len() as u32,
            matcher.is_complete()
        );
    };
    let t = Instant::now();
    let schema = serde_json::json!({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0},"tags":{"type":"array","items":{"type":"string"}},"kind":{"enum":["bee","wasp"]}},"required":["name","age","tags","kind"],"additionalProperties":false});
    let c = compiler.json_schema(&schema, &Limits::default()).unwrap();
    eprintln!("compile {:?}", t.elapsed());
    follow(
        "schema",
        &c,
        "{\"name\": \"Anna Maria of the long long name with many words in it\", \"age\": 31,\n \"tags\": [\"honey\", \"пчела\"], \"kind\": \"bee\"}",
    );
    follow(
        "schema again",
        &c,
        "{\"name\": \"Anna Maria of the long long name with many words in it\", \"age\": 31,\n \"tags\": [\"honey\", \"пчела\"], \"kind\": \"bee\"}",
    );
    let text = "Okay, so the user wants \"JSON\".\n\nLet me think: { } and <b> then, пчела. 1 + 2 = 3;\n\n";
    let c = compiler
        .lark(
            r#"start: thoughts? body
body: "{}"
thoughts: "<think>" inner
inner[lazy]: /(?s:.*)<\/think>\s{0,4}/"#,
        )
        .unwrap();
    follow("lazy", &c, &format!("<think>{text}</think>{{}}"));
    let c = compiler
        .lark(
            r#"start: thoughts? ws body
ws: /\s{0,4}/
body: "{}"
thoughts: "<think>" inner
inner[suffix="</think>"]: /(?s:.*)/"#,
        )
        .unwrap();
    follow("suffix", &c, &format!("<think>{text}</think>\n\n{{}}"));
    let c = compiler
        .lark(
            r#"start: text 
text: /(?s:.*)/ <[0]> "{}" "#,
        )
        .unwrap();
    follow("greedy", &c, &format!("{text}"));
}
