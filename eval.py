"""Accuracy on held-out charts, how sure one can be of it, and the table of a run.

    python eval.py --model M [--compare A B]                  # on the built-in held-out charts
    python eval.py --model M --bench paper [--judge TEXT]     # on questions from outside
    python eval.py --run RUN [--bench ...]                    # the base and every Solver of a run
    python eval.py --report RUN [--png FILE]                  # draw RUN/report.html

On charts the Solver is asked with its own prompt, as in training. Three figures part ways:

    sampled    mean over questions and n samples     what the reward of phase S pushes up
    majority   the vote of the n samples             what labels are made of
    greedy     one reply at temperature 0            what a user would get

Sharpening alone pulls `sampled` up towards `majority`; only new ability raises `majority` itself.
"""

# Before anything imports torch.
from support import machine  # noqa: F401  # isort: skip

import time

from generate import generate
from prompts import fill, placeholders
from render import Renderer
from support import parallel
from support.answers import answers_match, extract_answer, vote
from support.figures import figures
from support.parallel import gather, rank_slice
from tiny import world


def charts(count, seed=0, kind="hard", of="test"):
    """`count` questions on charts the tiny base never saw -> (questions, their content types).

    A question is (picture, text, answer). All must answer the same: a failed picture is an error.
    """
    drawn, questions = world.heldout(count, seed, kind, of), []
    with Renderer() as renderer:
        pictures = renderer.render([(question.svg, "svg") for question in drawn])
    for picture, asked in zip(pictures, drawn):
        if picture.error is not None:
            raise RuntimeError(f"a held-out chart could not be drawn: {picture.error}")
        questions.append((picture.image, asked.question, asked.answer))
    return questions, [question.content_type for question in drawn]


def evaluate(vlm, questions, n=8, seed=0, max_new_tokens=512, progress=False):
    """Held-out accuracy of `vlm` as a Solver on `questions`, built like those of `charts`.

    Returns shares: sampled and its 95 % interval (sampled_low, sampled_high), majority, greedy,
    unread; questions, n, seconds; and per_question = {"sampled" | "majority" | "greedy": [Q]}, to
    compare. Each rank asks its slice of the questions, and all get the whole result.
    """
    if not questions or n < 1:
        raise ValueError(f"{len(questions)} questions, n = {n}: both must be 1 or more")
    begun, template = time.perf_counter(), vlm.prompts["solver"]
    prompts = []
    for picture, text, _ in rank_slice(questions):
        prompts.append(vlm.encode(fill(template, question=text), [picture]))
    limits = {"max_new_tokens": max_new_tokens, "seed": seed, "progress": progress}
    numbers = rank_slice(range(len(questions)))
    sampled = generate(vlm, prompts, n=n, temperature=1.0, numbers=numbers, **limits)
    greedy = generate(vlm, prompts, n=1, temperature=0.0, numbers=numbers, **limits)

    # A share in [0, 1] for each question.
    shown = placeholders(vlm.prompts)
    unread, hits = 0, {"sampled": [], "majority": [], "greedy": []}
    for replies, (best,), (_, _, truth) in zip(gather(sampled), gather(greedy), questions):
        # None, an answer that cannot be read, is wrong.
        answers = [extract_answer(reply.text, shown) for reply in replies]
        winner, _ = vote(answers)
        right = [answers_match(answer, truth) for answer in answers]
        hits["sampled"].append(sum(right) / n)
        hits["majority"].append(float(answers_match(winner, truth)))
        hits["greedy"].append(float(answers_match(extract_answer(best.text, shown), truth)))
        unread += answers.count(None)
    result = figures(hits, seed)
    result["n"], result["unread"] = n, unread / (n * len(questions))
    return result | {"seconds": time.perf_counter() - begun}


def main(arguments=None):
    from tools import compare
    from tools.report import report

    options = compare.parse(arguments)
    parallel.start()
    try:
        if options.report:
            print(report(options.report, options.png))
        else:
            print(compare.scores(options))
    except (ValueError, OSError, RuntimeError) as error:
        parallel.fail(f"eval.py: {error}")
    except KeyboardInterrupt:
        parallel.fail("eval.py: stopped; the same command goes on after the last answers")
    parallel.stop()


if __name__ == "__main__":
    main()
