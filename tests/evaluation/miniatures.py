"""Small invented data in the form that lm-evaluation-harness's tasks have upstream: same splits, fields and types.

`write(directory)` leaves a file a split, named after the dataset (`ai2_arc.ARC-Easy.test.jsonl`) or after the task
(`arc_easy.test.jsonl`). Nothing here is taken from the sets that it stands for.
"""

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Splits = dict[str, list[Record]]

# What a lantern-lit village knows: question, right answer, wrong ones, a sentence that supports it.
FACTS = [
    ("What does a lamp give off when it burns", "light", ["sand", "rain", "music"], "A burning lamp gives off light."),
    ("What do bees make from nectar", "honey", ["glass", "iron", "salt"], "Bees turn nectar into honey."),
    ("What falls from a cloud in winter", "snow", ["apples", "oil", "coins"], "In winter snow falls from clouds."),
    ("What does a river run into at last", "the sea", ["a tree", "a clock", "a hat"], "Every river ends in the sea."),
    ("What does a magnet pull", "iron", ["wood", "wool", "paper"], " Magnets pull things that are made of iron."),
    ("What is bread baked from", "flour", ["gravel", "smoke", "ice"], ""),
    ("What does a clock show", "the time", ["the weather", "a smell", "the price"], "A clock shows the time of day."),
    ("What do roots take from the soil", "water", ["stars", "noise", "shade"], "Roots drink water from the soil."),
    ("What covers a sheep", "wool", ["scales", "feathers", "bark"], "A sheep is covered by wool, a fish by scales."),
    ("What does ice become when it is warmed", "water", ["stone", "dust", "wool"], "Warmed ice melts: it is water."),
    ("What keeps a kite in the air", "the wind", ["a lamp", "its color", "luck"], "The wind holds a kite up."),
    (
        "What do owls hunt at night",
        "mice",
        ["clouds", "boats", "bells"],
        "Owls are awake at night, and they hunt mice.",
    ),
    ("What does a café sell", "coffee", ["thunder", "meadows", "tides"], "The “café” sells coffee — and cake."),
    ("What ripens in an orchard", "apples", ["nails", "ropes", "bricks"], "Apples ripen in the orchard in autumn."),
    ("What does a thermometer measure", "temperature", ["weight", "age", "depth"], "It tells the temperature in °C."),
    ("What is in the sky by day", "the sun", ["the floor", "a cellar", "a well"], "The sun is in the sky by day."),
]
PEOPLE = ["Ada", "Boris", "Chen", "Dana", "Emil", "Fatou", "Goran", "Hana", "Ines", "Jonas", "Kofi", "Lena"]
_DESCRIPTIONS = [
    "The lamp was lit early",
    "Rain fell on the mill",
    "A cart rolled down the lane",
    "The ferry came late",
]


def _turned(index: int, right: str, wrong: list[str]) -> tuple[list[str], int]:
    """The choices with the right one at a place that changes with the index."""
    place = index % (len(wrong) + 1)
    return [*wrong[:place], right, *wrong[place:]], place


def _lettered(index: int, question: str, key: str, letters: str, *, extra: list[str] = ()) -> Record:  # type: ignore[assignment]
    _, right, wrong, _ = FACTS[index]
    texts, place = _turned(index, right, [*wrong, *extra])
    labels = list(letters[: len(texts)])
    return {
        "id": f"mini-{index}",
        key: question,
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[place],
    }


def _split(records: list[Record], *names: str) -> Splits:
    """Ten records for the first split and the rest for the others, in turn."""
    rest = records[10:]
    return {names[0]: records[:10]} | {name: rest[n :: len(names) - 1] for n, name in enumerate(names[1:])}


def _hellaswag() -> Splits:
    def one(n: int) -> Record:
        who, (_, right, wrong, support) = PEOPLE[n % 12], FACTS[n]
        endings, place = _turned(n, f"looks for {right}.", [f"[step] puts {w} into the  bag." for w in wrong])
        ctx_a, ctx_b = f"{_DESCRIPTIONS[n % 4]} [title] {support or 'Nobody spoke.'}", f"then {who.lower()}"
        return {
            "ind": n, "activity_label": "Village life", "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": f"{ctx_a} {ctx_b}",
            "endings": endings, "source_id": f"mini~{n}", "split": "val", "split_type": "indomain", "label": str(place),
        }  # fmt: skip

    return _split([one(n) for n in range(16)], "train", "validation")


def _piqa() -> Splits:
    def one(n: int) -> Record:
        question, right, wrong, _ = FACTS[n]
        good, bad = f"Use {right}, and take your time.", f"Use {wrong[0]}, and take your time."
        goal = f"How do I find out {question[0].lower() + question[1:]}?"
        return {"goal": goal, "sol1": bad if n % 2 else good, "sol2": good if n % 2 else bad, "label": n % 2}

    return _split([one(n) for n in range(16)], "train", "validation")


def _arc(hard: bool) -> Splits:
    def one(n: int) -> Record:
        question = FACTS[n][0] + ("?" if not hard else ", and why would a careful villager say so?")
        record = _lettered(
            n, question, "question", "1234" if n % 5 == 4 else "ABCDE", extra=["none"] if n == 11 else []
        )
        if n % 6 == 0:  # as upstream, a few have three or five choices
            record["choices"] = {k: v[:3] for k, v in record["choices"].items()}
            record["answerKey"] = "ABC"[n % 4] if n % 4 < 3 else "A"
        return record

    return _split([one(n) for n in range(16)], "train", "validation", "test")


def _openbookqa() -> Splits:
    records = [
        _lettered(n, FACTS[n][0].lower().replace("what", "it is known what"), "question_stem", "ABCD")
        for n in range(16)
    ]
    return _split(records, "train", "validation", "test")


def _winogrande() -> Splits:
    def one(n: int) -> Record:
        a, b = PEOPLE[n % 12], PEOPLE[(n + 5) % 12]
        sentence = f"{a} gave {b} the lantern because _ " + ("had to leave." if n % 2 else "was afraid of the dark.")
        return {"sentence": sentence, "option1": a, "option2": b, "answer": "1" if n % 2 else "2"}

    return _split([one(n) for n in range(16)], "train", "validation")


def _boolq() -> Splits:
    def one(n: int) -> Record:
        question, right, wrong, support = FACTS[n]
        passage = f"{support.strip() or 'Bread is baked from flour.'} {_DESCRIPTIONS[n % 4]}, and the village slept."
        asked = right if n % 2 else wrong[0]
        return {"question": f"is {asked} {question.lower()}", "passage": passage, "idx": n, "label": n % 2}

    return _split([one(n) for n in range(16)], "train", "validation")


def _commonsense_qa() -> Splits:
    def one(n: int) -> Record:
        record = _lettered(n, f"{FACTS[n][0]}? ", "question", "ABCDE", extra=["a mirror"])
        return record | {"question_concept": FACTS[n][1]}

    return _split([one(n) for n in range(16)], "train", "validation")


def _social_iqa() -> Splits:
    def one(n: int) -> Record:
        a, b = PEOPLE[n % 12], PEOPLE[(n + 3) % 12]
        answers, place = _turned(n, f"thank {a}", ["sell the mill", f"forget {a} and {b}"])
        named = dict(zip(("answerA", "answerB", "answerC"), answers, strict=True))
        return {
            "context": f"{a} carried the basket for {b}.",
            "question": f"What will {b} want to do next?",
            **named,
            "label": str(place + 1),
        }

    return _split([one(n) for n in range(16)], "train", "validation")


def _sciq() -> Splits:
    def one(n: int) -> Record:
        question, right, wrong, support = FACTS[n]
        return {
            "question": f"{question}?", "distractor3": wrong[2], "distractor1": wrong[0], "distractor2": wrong[1],
            "correct_answer": right, "support": support,
        }  # fmt: skip

    return _split([one(n) for n in range(16)], "train", "validation", "test")


def _mmlu(subject: str) -> Splits:
    def one(n: int) -> Record:
        question, right, wrong, _ = FACTS[n]
        choices, place = _turned(n, right, wrong)
        return {
            "question": f"{question}, in terms of {subject}? ",
            "subject": subject,
            "choices": choices,
            "answer": place,
        }

    records = [one(n) for n in range(16)]
    return {"test": records[:5], "validation": records[5:8], "dev": records[8:13], "auxiliary_train": records[13:]}


def _truthful_qa() -> Splits:
    def one(n: int) -> Record:
        question, right, wrong, support = FACTS[n]
        false = [f"It is {w}" for w in wrong]
        mc1 = {"choices": [f"It is {right}", *false], "labels": [1, 0, 0, 0]}
        mc2 = {"choices": [f"It is {right}", support.strip() or "Flour", *false], "labels": [1, 1, 0, 0, 0]}
        return {"question": f"{question}?", "mc1_targets": mc1, "mc2_targets": mc2}

    return {"validation": [one(n) for n in range(6)]}


def _lambada() -> Splits:
    story = '{who} went to the old mill to look for {thing}. "There is no {thing} here," said the miller, "but by the'
    story += ' river you may find some."\n\nSo {who} walked on, and by the river there was {thing}'
    return {"test": [{"text": story.format(who=PEOPLE[n], thing=FACTS[n][1].split()[-1])} for n in range(6)]}


def _wikitext() -> Splits:
    def page(n: int) -> Record:
        lines = [f" = {FACTS[n][1].title()} = \n", "\n"]
        for k in range(4 + 3 * (n % 3)):
            question, right, wrong, support = FACTS[(n + k) % 16]
            asked = f'{support.strip() or "Bread ."} In 1 @,@ 70{k} it was asked : " {question.lower()} ? "'
            lines.append(f" {asked} ( not {wrong[0]} , \n but {right} ) . It weighs 2 @.@ 5 kg , ")
            lines.append("a well @-@ known <unk> 's burden . \n = = Notes = = \n")
        return {"page": "".join(lines)}

    return {"train": [page(n) for n in range(4)], "validation": [page(4)], "test": [page(n) for n in range(5, 9)]}


def _gsm8k() -> Splits:
    def one(n: int) -> Record:
        who, bags, each, gone = PEOPLE[n % 12], 3 + n, 4 + 2 * (n % 3), 1 + n % 4
        total, left = bags * each, bags * each - gone
        thing = FACTS[13][1]
        answer = f"{who} has {bags} * {each} = <<{bags}*{each}={total}>>{total} {thing}.\n"
        answer += f"After selling {gone}, {total} - {gone} = <<{total}-{gone}={left}>>{left} are left.\n#### {left}"
        question = f"{who} has {bags} bags of {each} {thing} and sells {gone} of them. How many {thing} are left?"
        return {"question": question, "answer": answer}

    return {"train": [one(n) for n in range(10)], "test": [one(n) for n in range(10, 16)]}


def _math(kind: str) -> Splits:
    def one(n: int) -> Record:
        a, b = n + 2, 3 * n + 7
        solution = f"We subtract ${a}$ from both sides, so $x = {b} - {a}$, and the answer is $\\boxed{{{b - a}}}$."
        return {"problem": f"Solve $x + {a} = {b}$.", "level": f"Level {1 + n % 5}", "type": kind, "solution": solution}

    return {"train": [one(n) for n in range(6)], "test": [one(n) for n in range(6, 10)]}


def _ifeval() -> Splits:
    def one(n: int, prompt: str, name: str, **kwargs: Any) -> Record:
        return {"key": 1000 + n, "prompt": prompt, "instruction_id_list": [name], "kwargs": [kwargs]}

    return {
        "train": [
            one(0, "Write about a mill without any comma.", "punctuation:no_comma"),
            one(1, "Name a river and mention the word lantern.", "keywords:existence", keywords=["lantern"]),
            one(
                2,
                "Say something in at least 20 words.",
                "length_constraints:number_words",
                num_words=20,
                relation="at least",
            ),
            one(3, "Answer in lowercase letters only.", "change_case:english_lowercase"),
        ]
    }


def _humaneval() -> Splits:
    def one(n: int, name: str, doc: str, body: str, check: str) -> Record:
        prompt = f'def {name}(x):\n    """{doc}"""\n'
        return {
            "task_id": f"HumanEval/{n}", "prompt": prompt, "canonical_solution": f"    {body}\n",
            "test": f"def check(candidate):\n    {check}\n", "entry_point": name,
        }  # fmt: skip

    return {
        "test": [
            one(0, "twice", "Twice the number.", "return 2 * x", "assert candidate(3) == 6"),
            one(1, "first_letter", "The first letter of a word.", "return x[0]", "assert candidate('mill') == 'm'"),
            one(
                2,
                "is_even",
                "Whether a number is even.",
                "return x % 2 == 0",
                "assert candidate(4) and not candidate(5)",
            ),
        ]
    }


def _mbpp() -> Splits:
    def one(n: int, name: str, text: str, code: str, tests: list[str]) -> Record:
        return {
            "task_id": 11 + n, "text": text, "code": f"def {name}(x):\r\n    {code}", "test_list": tests,
            "test_setup_code": "", "challenge_test_list": [],
        }  # fmt: skip

    def tests(name: str, *pairs: tuple[Any, Any]) -> list[str]:
        return [f"assert {name}({x!r}) == {y!r}" for x, y in pairs]

    records = [
        one(
            0, "square", "Write a function to square a number.", "return x * x", tests("square", (2, 4), (3, 9), (0, 0))
        ),
        one(
            1,
            "backwards",
            "Write a function to reverse a word.",
            "return x[::-1]",
            tests("backwards", ("ab", "ba"), ("", ""), ("c", "c")),
        ),
        one(
            2,
            "count",
            "Write a function to count the items of a list.",
            "return len(x)",
            tests("count", ([], 0), ([1], 1), ([1, 2], 2)),
        ),
    ]
    return {"train": records[:1], "test": records, "validation": records[:1], "prompt": records[:1]}


def _bbh() -> Splits:
    values = [
        ("True and not False is", "True"),
        ("not True or False is", "False"),
        ("( True or False ) and True is", "True"),
    ]
    return {"test": [{"input": text, "target": target} for text, target in values]}


SUBJECTS = ("anatomy", "astronomy", "college_biology", "econometrics", "philosophy")
DATASETS: dict[tuple[str, str | None], Splits] = {
    ("Rowan/hellaswag", None): _hellaswag(),
    ("baber/piqa", None): _piqa(),
    ("allenai/ai2_arc", "ARC-Easy"): _arc(hard=False),
    ("allenai/ai2_arc", "ARC-Challenge"): _arc(hard=True),
    ("allenai/openbookqa", "main"): _openbookqa(),
    ("allenai/winogrande", "winogrande_xl"): _winogrande(),
    ("aps/super_glue", "boolq"): _boolq(),
    ("tau/commonsense_qa", None): _commonsense_qa(),
    ("lighteval/siqa", None): _social_iqa(),
    ("allenai/sciq", None): _sciq(),
    **{("cais/mmlu", subject): _mmlu(subject) for subject in SUBJECTS},
    ("truthfulqa/truthful_qa", "multiple_choice"): _truthful_qa(),
    ("EleutherAI/lambada_openai", "default"): _lambada(),
    ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"): _wikitext(),
    ("openai/gsm8k", "main"): _gsm8k(),
    ("EleutherAI/hendrycks_math", "algebra"): _math("Algebra"),
    ("google/IFEval", None): _ifeval(),
    ("openai/openai_humaneval", None): _humaneval(),
    ("google-research-datasets/mbpp", "full"): _mbpp(),
    ("SaylorTwift/bbh", "boolean_expressions"): _bbh(),
}
# The tasks that read them, as the harness names them.
TASKS: dict[str, tuple[str, str | None]] = {
    "hellaswag": ("Rowan/hellaswag", None),
    "piqa": ("baber/piqa", None),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "openbookqa": ("allenai/openbookqa", "main"),
    "winogrande": ("allenai/winogrande", "winogrande_xl"),
    "boolq": ("aps/super_glue", "boolq"),
    "commonsense_qa": ("tau/commonsense_qa", None),
    "social_iqa": ("lighteval/siqa", None),
    "sciq": ("allenai/sciq", None),
    **{f"mmlu_{subject}": ("cais/mmlu", subject) for subject in SUBJECTS},
    "truthfulqa_mc1": ("truthfulqa/truthful_qa", "multiple_choice"),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice"),
    "lambada_openai": ("EleutherAI/lambada_openai", "default"),
    "wikitext": ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"),
    "gsm8k": ("openai/gsm8k", "main"),
    "minerva_math_algebra": ("EleutherAI/hendrycks_math", "algebra"),
    "ifeval": ("google/IFEval", None),
    "humaneval": ("openai/openai_humaneval", None),
    "mbpp": ("google-research-datasets/mbpp", "full"),
    "bbh_cot_fewshot_boolean_expressions": ("SaylorTwift/bbh", "boolean_expressions"),
    "bbh_fewshot_boolean_expressions": ("SaylorTwift/bbh", "boolean_expressions"),
}


def write(directory: Path, tasks: Iterable[str] = TASKS, *, form: str = "jsonl", named_by: str = "dataset") -> Path:
    """Write the tasks' data into a directory, a file a split; returns it.

    form: `jsonl`, `jsonl.gz`, `parquet`, `csv` (only records without nested fields), each also read upstream.
    named_by: `dataset` for `ai2_arc.ARC-Easy.test.jsonl`, `task` for `arc_easy.test.jsonl`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        path, config = TASKS[task]
        dataset = path.split("/")[-1] + (f".{config}" if config else "")
        for split, records in DATASETS[path, config].items():
            _write(directory / f"{dataset if named_by == 'dataset' else task}.{split}.{form}", records, form)
    return directory


def _write(path: Path, records: list[Record], form: str) -> None:
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), path)
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path.write_bytes(gzip.compress(text.encode()) if form == "jsonl.gz" else text.encode())
