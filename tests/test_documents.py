"""What the documents show runs: the README's Python, its commands, every recipe."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classroom import QUICK, pictures
from nacre.data.source import Samples, Source
from nacre.evaluation.measures import MEASURES
from nacre.experiment import Experiment, Run
from nacre.methods import METHODS
from nacre.study import Study, named
from nacre.training.optim import Optim
from nacre.training.runtime import Hardware

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [path for folder in (".", "docs", "recipes", "benchmarks") for path in (ROOT / folder).glob("*.md")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_imports_what_is_there() -> None:
    for code in blocks("python"):
        imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert imports
        exec(compile(ast.Module(imports, []), "README.md", "exec"), {})


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    code, *_ = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers = [float(word) for word in done.stdout.split()]
    assert len(numbers) == 3
    assert all(-1 <= number <= 1 for number in numbers)


@pytest.mark.slow
def test_the_onnx_and_the_scikit_learn_of_the_readme_run(tmp_path: Path) -> None:
    _, served, estimator = blocks("python")
    pictures(tmp_path / "images", {"cat": 1, "dog": 2})
    for arguments in (("learn", "model.nacre", "images", *QUICK), ("export", "model.nacre", "model.onnx")):
        subprocess.run([sys.executable, "-m", "nacre", *arguments], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "image.png").write_bytes((tmp_path / "images" / "dog" / "003.png").read_bytes())
    said = []
    for code in (served, estimator):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
        said.append(done.stdout)
    assert said[0].split()[0] in ("cat", "dog")
    assert float(said[1]) > 0.9


def test_the_readme_names_commands_that_exist() -> None:
    shell = "\n".join(blocks("sh"))
    targets = set(re.findall(r"^make (\w+)", shell, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for path in re.findall(r"(?:python|nacre run) ((?:benchmarks|recipes)/\S+)", shell):
        assert (ROOT / path).exists(), path


def test_ci_calls_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_files_that_the_readme_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


STUDIES_PAGE = (ROOT / "docs" / "studies.md").read_text()


def test_the_study_of_the_page_on_studies_fits(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", STUDIES_PAGE, re.DOTALL)
    (tmp_path / "exemplars.toml").write_text(text)
    study = Study.load(tmp_path / "exemplars.toml")
    assert study.trials()
    compared = len(study.arms) - 1
    assert f"{compared * 2 / 2 ** len(study.seeds):.3f}"[1:] == ".047"
    assert "for the three arms above (.047)" in STUDIES_PAGE
    named = re.findall(r"(?:--arm|--baseline) (\w+)", STUDIES_PAGE)
    assert named
    assert {*named} - {"replay"} <= study.arms.keys()


def test_the_page_on_studies_names_all_measures() -> None:
    rows = re.search(r"^\| name \| what it is \|\n(.*?)\n\n", STUDIES_PAGE, re.DOTALL | re.MULTILINE)
    assert rows
    assert {name for row in rows[1].splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])} == MEASURES.keys()


def test_the_python_of_the_page_on_studies_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", STUDIES_PAGE, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["0", "1", "2", "3", "4"]


FILES = sorted((ROOT / "recipes").glob("*.toml"))
STUDIES = [path for path in FILES if "arms" in tomllib.loads(path.read_text())]
PROTOCOLS = [path for path in STUDIES if path.stem.startswith("cifar-100-")]
FROM_SCRATCH = {name for name, cls in METHODS.items() if "pre-training" not in cls.needs}
RECIPES = [path for path in FILES if path not in STUDIES]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_says_what_it_is_and_all_its_settings_fit(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"nacre study recipes/{path.name}" in line for line in header)
    study = Study.load(path)
    trials = study.trials()
    assert len(trials) == len(study.arms) * len(study.data) * len(study.seeds)
    assert all(study.epochs in (None, trial.experiment.method.optim.epochs) or named(study.arms[trial.arm]) for trial in trials)


@pytest.mark.parametrize("path", [ROOT / "recipes" / "cifar-20-classes.toml", *PROTOCOLS], ids=lambda path: path.stem)
def test_the_studies_of_all_methods_have_them_all(path: Path) -> None:
    assert {arm["method"]["name"] for arm in Study.load(path).arms.values()} == FROM_SCRATCH


def test_the_study_of_pretrained_backbones_has_every_method_that_needs_one() -> None:
    study = Study.load(ROOT / "recipes" / "pretrained-cifar-100-b0-inc5.toml")
    assert {arm["method"]["name"] for arm in study.arms.values()} == METHODS.keys() - FROM_SCRATCH
    assert study.published.keys() == study.arms.keys()
    backbones = {trial.experiment.method.backbone for trial in study.trials()}
    assert backbones == {"timm:vit_base_patch16_224.augreg_in21k"}


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_a_protocols_study_is_that_protocol_with_the_fields_class_order(path: Path) -> None:
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert all(re.search(rf"^# {word} ", header, re.MULTILINE) for word in ("command", "needs", "hardware", "time", "recipes", "published"))
    study = Study.load(path)
    assert (study.seeds[0], len(set(study.seeds))) == (1993, 5)
    first = study.trial("replay", "", study.seeds[0]).experiment
    labels = torch.arange(100)
    samples = Samples.of(torch.zeros(100, 3, 4, 4, dtype=torch.uint8), labels)
    stream = first.arrival.stream(Source(samples, samples, tuple(map(str, range(100)))), first.protocol, first.seed)
    base, step = map(int, re.findall(r"\d+", path.stem.removeprefix("cifar-100-")))
    assert [len(stage.new) for stage in stream] == [base or step] + [step] * ((100 - (base or step)) // step)
    assert stream.order[:5] == (68, 56, 78, 8, 23)  # the beginning of the permutation that the field's tables name
    for trial in study.trials(seeds=[1993]):
        whole = trial.experiment
        assert (whole.protocol, whole.arrival.order, whole.method.backbone) == (first.protocol, "numpy", "resnet32")
        remembering = "all" if trial.arm == "joint" else "2000"
        assert whole.memory == (remembering if "exemplars" in whole.method.needs else "none"), trial.arm
    assert study.published.keys() == study.arms.keys()  # a number with its source, or "none known"
    assert all(len(given) > 1 or given["source"] == "none known" for given in study.published.values())


def test_the_protocols_studies_train_by_the_same_recipes() -> None:
    one, *others = ({trial.arm: trial.experiment for trial in Study.load(path).trials(seeds=[1993])} for path in PROTOCOLS)
    for other in others:
        assert {arm: replace(whole, protocol=one[arm].protocol) for arm, whole in other.items()} == one


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_and_runs(path: Path, tmp_path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"nacre run recipes/{path.name}" in line for line in header)
    assert any("hardware" in line for line in header)
    whole = Experiment.load(path)
    assert Experiment.of(tomllib.loads(whole.toml())) == whole
    quick = Optim(epochs=1, batch=256, lr=0.01)
    short = replace(
        whole,
        method=replace(whole.method, optim=quick, later=None),
        hardware=Hardware(device="cpu", precision="fp32", layout="contiguous", threads=1),
    )
    first = next(iter(Run(short, tmp_path / "run").stages()))
    assert 0 <= first["accuracy"] <= 1


def test_the_table_of_recipes_names_every_file() -> None:
    page = (ROOT / "recipes" / "README.md").read_text()
    named = re.findall(r"^\| \[(\S+\.toml)\]\(\1\) \|", page, re.MULTILINE)
    assert sorted(named) == [path.name for path in FILES]


def anchors(page: Path) -> set[str]:
    """What a link into a page may name after `#`: its headings in small letters, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in PAGES))
def test_every_link_between_the_pages_leads_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
