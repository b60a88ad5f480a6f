"""Results files that lm-evaluation-harness itself writes, of a model whose log-likelihoods are random numbers."""

import hashlib
import shutil

import pytest


def uniform(*texts):
    """A number from 0 to 1 that is the same for the same texts."""
    digest = hashlib.sha256("\0".join(map(str, texts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def make_model(name, skill):
    """A language model of the harness: random log-likelihoods, `skill` nats better on continuations that are right."""
    from lm_eval.api.model import LM

    class Random(LM):
        def _logprob(self, *texts):
            right = "right" in texts[-1]
            return -2.0 - 8 * uniform(*texts) - 2 * uniform(name, *texts) + skill * right

        def loglikelihood(self, requests):
            return [(self._logprob(*request.args), uniform(name, request.args) < 0.5) for request in requests]

        def loglikelihood_rolling(self, requests):
            return [
                -len(request.args[0]) * (1.5 - skill / 10 + 0.05 * uniform(name, request.args[0]))
                for request in requests
            ]

        def generate_until(self, requests):
            return [f"{int(10 * uniform(name, r.args[0]) < 5 + skill)}" for r in requests]

    return Random()


def make_tasks(items, shots=0, passages=0):
    """Two subjects of multiple choice in a group, a last word, whole pages, and answers that are generated."""
    from datasets import Dataset
    from lm_eval.api.group import AggMetricConfig, Group
    from lm_eval.api.task import ConfigurableTask

    def subject(name, size):
        docs = [
            {"question": f"{name} {i}", "choices": ["wrong", "right", "quite wrong"]}
            | ({"passage": f"passage {i % passages}"} if passages else {})
            for i in range(size)
        ]
        return ConfigurableTask(
            config={
                "task": name,
                "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
                "test_split": "test",
                "fewshot_split": "test",
                "num_fewshot": shots,
                "output_type": "multiple_choice",
                "doc_to_text": "Question: {{question}}\nAnswer:",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": 1,
                "metric_list": [
                    {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
                ],
                "metadata": {"version": 1.0},
            }
        )

    def plain(name, output_type, metrics, size, **config):
        docs = [{"text": f"page {i} of many words", "last": f"right {i}", "answer": "1"} for i in range(size)]
        return ConfigurableTask(
            config={
                "task": name,
                "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
                "test_split": "test",
                "output_type": output_type,
                "metric_list": [{"metric": metric} for metric in metrics],
                "metadata": {"version": 1.0},
                **config,
            }
        )

    subjects = [subject("subject_a", items), subject("subject_b", 2 * items)]
    group = Group(
        name="subjects",
        aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True, filter_list=["none"])],
    )
    for task in subjects:
        group.add(task)
    last = plain(
        "last_word", "loglikelihood", ("perplexity", "acc"), items, doc_to_text="{{text}}", doc_to_target=" {{last}}"
    )
    pages = plain(
        "pages",
        "loglikelihood_rolling",
        ("word_perplexity", "byte_perplexity", "bits_per_byte"),
        items,
        doc_to_text="",
        doc_to_target="{{text}}",
    )
    answers = plain(
        "answers",
        "generate_until",
        ("exact_match",),
        items,
        doc_to_text="{{text}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"]},
    )
    return [group, last, pages, answers]


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The directory of each run, written once."""
    runs = {}

    def write(name, skill, items, shots, passages, limit):
        from lm_eval.evaluator import evaluate
        from lm_eval.loggers import EvaluationTracker

        from slmjax.evaluation.harness.host_cost import keep_compiled_templates

        keep_compiled_templates()
        root = tmp_path_factory.mktemp("runs")
        tracker = EvaluationTracker(output_path=str(root))
        group, *others = make_tasks(items, shots, passages)
        tasks = {task.task_name: task for task in (*group.get_all_tasks(), *others)}
        for task in tasks.values():
            task.set_fewshot_seed(1234)
        results = evaluate(
            lm=make_model(name, skill),
            task_dict={"tasks": tasks, "groups": {group.name: group}},
            bootstrap_iters=0,
            limit=limit,
            log_samples=True,
        )
        samples = results.pop("samples")
        config = tracker.general_config_tracker
        config.model_source, config.model_name, config.model_name_sanitized = "random", name, name
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
        return root / name

    def find(*run):
        if run not in runs:
            runs[run] = write(*run)
        return runs[run]

    return find


@pytest.fixture
def write_results(written, tmp_path):
    """A copy of the results of a model of this name and skill: the path of the results file."""
    pytest.importorskip("lm_eval")

    def write(name, skill=0.0, items=30, shots=0, passages=0, limit=None):
        directory = shutil.copytree(written(name, skill, items, shots, passages, limit), tmp_path / name)
        (path,) = directory.glob("results_*.json")
        return path

    return write
