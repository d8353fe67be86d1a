//! The words of the filler and of the facts, in two languages.
//!
//! The filler must be plain prose that says nothing about codes and holds no digit, so that a code in an answer can only
//! come from a planted fact. Sentences are put together here, so nobody's text is in them.

use clap::ValueEnum;

use super::corpus::Random;

/// Language of the text, the facts and the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// English
    En,
    /// Russian
    Ru,
}

/// Words that agree with each other.
struct Gender {
    adjectives: &'static [&'static str],
    people: &'static [&'static str],
    verbs: &'static [&'static str],
}

struct Words {
    article: &'static str,
    genders: &'static [Gender],
    places: &'static [&'static str],
    times: &'static [&'static str],
    weather: &'static [&'static str],
    /// Between two clauses.
    and: &'static str,
    when: &'static str,
    nobody: &'static str,
    /// Of facts, as they stand in `code_of`; every colour goes with every thing.
    colours: &'static [&'static str],
    things: &'static [&'static str],
    /// `SUBJECT` is a colour and a thing.
    code_of: &'static str,
    is: &'static str,
    question: &'static str,
    introduction: &'static str,
    /// Marks of question and answer where there is no chat template.
    marks: [&'static str; 2],
}

impl Language {
    /// As flags and pictures call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Ru => "ru",
        }
    }

    fn words(self) -> &'static Words {
        match self {
            Self::En => &EN,
            Self::Ru => &RU,
        }
    }

    /// Facts that can be told apart.
    pub(super) fn subjects(self) -> usize {
        self.words().colours.len() * self.words().things.len()
    }

    /// What the fact of this index is about, below [`subjects`](Self::subjects).
    pub(super) fn subject(self, index: usize) -> String {
        let words = self.words();
        let (colour, thing) = (index / words.things.len(), index % words.things.len());
        format!("{} {}", words.colours[colour], words.things[thing])
    }

    /// The sentence that plants a fact.
    pub(super) fn fact(self, subject: &str, code: &str) -> String {
        capitalised(&format!("{} {code}.", self.code_of(subject)))
    }

    fn code_of(self, subject: &str) -> String {
        let words = self.words();
        format!("{}{}", words.code_of.replace("SUBJECT", subject), words.is)
    }

    /// What is asked about it.
    pub(super) fn question(self, subject: &str) -> String {
        self.words().question.replace("SUBJECT", subject)
    }

    /// What a reader is told before the text.
    pub(super) fn introduction(self) -> &'static str {
        self.words().introduction
    }

    /// The question with the beginning of its answer, for a model that only goes on from a text.
    pub(super) fn completion(self, subject: &str) -> String {
        let [question, answer] = self.words().marks;
        format!("{question} {}\n{answer} {}", self.question(subject), capitalised(&self.code_of(subject)))
    }

    /// A sentence that says nothing about codes.
    pub(super) fn filler(self, random: &mut Random) -> String {
        let words = self.words();
        let clause = |random: &mut Random| {
            let gender = random.choose(words.genders);
            let [adjective, person, verb] =
                [gender.adjectives, gender.people, gender.verbs].map(|list| *random.choose(list));
            format!("{}{adjective} {person} {verb}", words.article)
        };
        let (first, place, time) = (clause(random), random.choose(words.places), random.choose(words.times));
        capitalised(&match random.below(5) {
            0 => format!("{first} {place} {time}."),
            1 => format!("{time} {first} {place}."),
            2 => format!("{first} {place}{}{} {}.", words.and, clause(random), random.choose(words.places)),
            3 => format!("{} {first} {place}.", words.nobody),
            _ => format!("{}{} {first} {place}.", random.choose(words.weather), words.when),
        })
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

const EN: Words = Words {
    article: "the ",
    genders: &[Gender {
        adjectives: &[
            "old", "young", "quiet", "tired", "cheerful", "tall", "patient", "curious", "careful", "sleepy", "proud",
            "busy", "shy", "honest", "famous", "lonely",
        ],
        people: &[
            "baker",
            "fisherman",
            "teacher",
            "gardener",
            "doctor",
            "sailor",
            "painter",
            "miller",
            "carpenter",
            "shepherd",
            "librarian",
            "postman",
            "musician",
            "farmer",
            "tailor",
            "watchmaker",
        ],
        verbs: &[
            "waited",
            "walked slowly",
            "sang a song",
            "told a story",
            "looked for mushrooms",
            "slept",
            "read a letter",
            "drank tea",
            "mended a net",
            "watched the clouds",
            "met a friend",
            "sold apples",
            "wrote a postcard",
            "laughed aloud",
            "listened to the wind",
            "lost a glove",
        ],
    }],
    places: &[
        "by the river",
        "behind the mill",
        "at the market",
        "in the garden",
        "on the bridge",
        "under the oak",
        "near the harbour",
        "in the village",
        "at the edge of the forest",
        "beside the well",
        "on the hill",
        "in front of the church",
        "at the railway station",
        "in the library",
        "along the shore",
        "by the open window",
    ],
    times: &[
        "in the morning",
        "in the evening",
        "at noon",
        "all day long",
        "before dinner",
        "after the rain",
        "on a cold night",
        "in early spring",
        "late in autumn",
        "on the first day of the holidays",
        "before sunrise",
        "once a week",
    ],
    weather: &[
        "snow was falling",
        "the sun was shining",
        "a light rain began",
        "the fog had lifted",
        "the wind was blowing from the sea",
        "the sky was clear",
        "thunder was heard far away",
        "the leaves were turning yellow",
    ],
    and: ", and ",
    when: " when",
    nobody: "nobody knew why",
    colours: &[
        "red", "blue", "green", "white", "black", "yellow", "brown", "silver", "golden", "purple", "pink", "grey",
    ],
    things: &[
        "lantern", "suitcase", "umbrella", "piano", "bicycle", "cabinet", "basket", "clock", "drum", "ladder", "safe",
        "tent",
    ],
    code_of: "the secret code of the SUBJECT",
    is: " is",
    question: "What is the secret code of the SUBJECT? Answer with the code alone.",
    introduction: "Read this text. It tells the secret codes of some things; remember them.",
    marks: ["Question:", "Answer:"],
};

const RU: Words = Words {
    article: "",
    genders: &[
        Gender {
            adjectives: &[
                "старый",
                "молодой",
                "тихий",
                "усталый",
                "весёлый",
                "высокий",
                "терпеливый",
                "любопытный",
                "осторожный",
                "сонный",
                "гордый",
                "скромный",
                "честный",
                "одинокий",
            ],
            people: &[
                "пекарь",
                "рыбак",
                "учитель",
                "садовник",
                "врач",
                "моряк",
                "художник",
                "мельник",
                "плотник",
                "пастух",
                "почтальон",
                "музыкант",
                "портной",
                "часовщик",
            ],
            verbs: &[
                "ждал",
                "медленно шёл",
                "пел песню",
                "рассказывал сказку",
                "искал грибы",
                "спал",
                "читал письмо",
                "пил чай",
                "чинил сеть",
                "смотрел на облака",
                "встретил друга",
                "продавал яблоки",
                "громко смеялся",
                "слушал ветер",
            ],
        },
        Gender {
            adjectives: &[
                "старая",
                "молодая",
                "тихая",
                "усталая",
                "весёлая",
                "высокая",
                "терпеливая",
                "любопытная",
                "осторожная",
                "сонная",
                "гордая",
                "скромная",
                "честная",
                "одинокая",
            ],
            people: &[
                "учительница",
                "соседка",
                "художница",
                "хозяйка",
                "певица",
                "швея",
                "бабушка",
                "сестра",
                "пастушка",
                "гостья",
                "садовница",
                "танцовщица",
            ],
            verbs: &[
                "ждала",
                "медленно шла",
                "пела песню",
                "рассказывала сказку",
                "искала грибы",
                "спала",
                "читала письмо",
                "пила чай",
                "вязала шарф",
                "смотрела на облака",
                "встретила подругу",
                "продавала яблоки",
                "громко смеялась",
                "слушала ветер",
            ],
        },
    ],
    places: &[
        "у реки",
        "за мельницей",
        "на рынке",
        "в саду",
        "на мосту",
        "под дубом",
        "возле гавани",
        "в деревне",
        "на опушке леса",
        "у колодца",
        "на холме",
        "перед церковью",
        "на вокзале",
        "в библиотеке",
        "вдоль берега",
        "у открытого окна",
    ],
    times: &[
        "утром",
        "вечером",
        "в полдень",
        "весь день",
        "перед обедом",
        "после дождя",
        "холодной ночью",
        "ранней весной",
        "поздней осенью",
        "в первый день каникул",
        "до рассвета",
        "раз в неделю",
    ],
    weather: &[
        "шёл снег",
        "светило солнце",
        "начинался мелкий дождь",
        "туман уже рассеялся",
        "ветер дул с моря",
        "небо было ясным",
        "вдали гремел гром",
        "листья желтели",
    ],
    and: ", а ",
    when: ", когда",
    nobody: "никто не знал, почему",
    colours: &[
        "красного",
        "синего",
        "зелёного",
        "белого",
        "чёрного",
        "жёлтого",
        "коричневого",
        "серебряного",
        "золотого",
        "лилового",
        "розового",
        "серого",
    ],
    things: &[
        "фонаря",
        "чемодана",
        "зонта",
        "рояля",
        "велосипеда",
        "шкафа",
        "сундука",
        "будильника",
        "барабана",
        "сейфа",
        "шатра",
        "самовара",
    ],
    code_of: "секретный код SUBJECT",
    is: " —",
    question: "Какой секретный код у SUBJECT? Ответь одним кодом.",
    introduction: "Прочитай этот текст. В нём названы секретные коды некоторых вещей; запомни их.",
    marks: ["Вопрос:", "Ответ:"],
};
