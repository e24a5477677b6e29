r"""The prompts of the three roles for real models, and the topics: all text from outside.

A checkpoint folder may bring its own prompts.json, built like PROMPTS (the tiny base does), with
its own "topics". In {curly brackets} stands what we fill in: {topic} for the Proposer; {caption},
{easy_question}, {easy_answer}, {hard_question}, {hard_answer} for the Coder; {question} for the
Solver. In [square brackets] stands what the model replaces. Who copies such a placeholder, or the
worked example, has imagined nothing: that text is no answer, no block of a proposal, no label.

What the prompts ask for is what rewards.py pays and render.py allows: change them together.
"""

import re

from support.answers import bare

TOPICS = (
    "chart and graph understanding",
    "statistical and trend analysis",
    "mathematical and quantitative reasoning",
    "spatial and geometric reasoning",
    "logical and abstract reasoning",
    "diagram and structural comprehension",
    "visual text recognition and OCR",
    "basic shape and object perception",
)


def fill(template, **fields):
    r"""Put the fields in. One pass: what comes in is never searched, other braces stay.

    >>> fill(r"{question} Answer in \boxed{}.", question="How many {bars}?")
    'How many {bars}? Answer in \\boxed{}.'
    """
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)


def topics_of(prompts):
    """The topics that a prompts.json brings, or else ours. ValueError if they are not texts.

    >>> topics_of({"topics": ["knots", "maps"]}), topics_of({}) == TOPICS
    (('knots', 'maps'), True)
    """
    topics = prompts.get("topics", TOPICS)
    listed = isinstance(topics, (list, tuple)) and len(topics) > 0
    if not listed or not all(isinstance(topic, str) and topic.strip() for topic in topics):
        raise ValueError('"topics" in prompts.json should be a list of one or more texts')
    return tuple(topics)


def placeholders(prompts):
    """The texts of some prompts that are never content: what stands in [square brackets], and the
    caption and the questions of a worked proposal. Its answers may be right elsewhere.

    >>> placeholders({"solver": "{question} Box [your Greek letter]."})
    {'greek letter'}
    """
    texts = [prompts.get("proposer", ""), prompts.get("solver", "")]
    text = "\n".join([*texts, *prompts.get("coder", {}).values()])
    found = re.findall(r"\[([^\[\]]*[a-z]{3}[^\[\]]*)\]", text)
    blocks = re.findall(r"<(caption|easy_question|hard_question)>([^<]*)</\1>", text)
    found += [content for _, content in blocks]
    return {bare(text) for text in found} - {""}


PROPOSER = """\
You invent visual reasoning problems. Another model will draw your picture by writing code, and a
third model will see only that picture and your questions. Topic: {topic}.

Plan one picture and two questions about it.

The picture
- Choose the content type that suits the idea best, not the one that comes to mind first. The
  types are: data_chart (bars, lines, pies, scatter plots, heatmaps), diagram (flowcharts,
  networks, circuits, trees), geometry (figures with lengths, angles, coordinates), timeline
  (events, schedules, Gantt charts), map (regions, routes, floor plans), table (grids of numbers,
  words or symbols), other (anything else).
- Describe it so completely that two people would draw the same: every element with its label,
  exact value, colour, position and connections, the axes with their units, the legend. Use plain
  shapes, lines and text.
- Make it rich: roughly 5 to 15 elements, related in at least two ways (say, groups and an order,
  or lengths and angles). All numbers must agree with each other.
- Be different. Do not reach for the stock example of the topic: no monthly sales, no fruit, no
  city weather, no right triangle with sides 3, 4, 5. Vary subject, layout, number of elements,
  names and values freely, and word caption and questions in a way that nobody else would.

The questions
- Both must be impossible to answer without looking at the picture: never state in a question a
  value that has to be read off it, and ask nothing that general knowledge answers.
- Easy question: its answer is one label, number or colour that can be read straight off the
  picture.
- Hard question: it needs at least three steps. Its answer must not be written anywhere in the
  picture, and must be neither obvious nor a guess: a good solver should be right about half of
  the time. What makes a question hard:
  * values from different places that belong together: a bar and the legend, a row and a column
  * a condition first and a calculation after it: of those that ..., how much ...
  * a rank or an order for which everything has to be read
  * a part against the rest: a share, the mean of the others, a difference of totals
  * counting what has two properties at once
  * a path or a chain of connections that has to be followed
  A single value, a comparison of two labelled numbers, or long sums with easy numbers are not
  hard.
- Each question has exactly one correct answer, short and easy to grade: one number (with its
  unit if it has one), one word or one label. If a number must be rounded, the question says how.
  Answers like these: 42   17.5 cm   3/4   25%   Tuesday   blue   Q3   node C
  None like these: about 40   A or C   the left one is larger   it depends

A worked example. Take its form, not its subject, names or numbers:
<think>
Fired longer than Dune's 8 hours: Ash, Birch and Clay. Their pots: 48 + 36 + 54 = 138.
Cracked: 6 + 3 + 9 = 18. Whole: 138 - 18 = 120. 120 / 138 = 0.8696, so 87%.
It needs the hours, two columns and a division, and 87 stands nowhere in the table.
</think>
<content_type>table</content_type>
<caption>A table titled "Kiln firings, week 12" with black grid lines on white. Its four columns
are headed Kiln, Pots in, Pots cracked and Hours. Its four rows are: Ash, 48, 6, 9; Birch, 36, 3,
12; Clay, 54, 9, 10; Dune, 42, 7, 8. The names of the kilns are bold and aligned to the left, the
numbers are centred. The row of Birch has a pale yellow background.</caption>
<easy_question>How many pots went into kiln Clay?</easy_question>
<easy_answer>54</easy_answer>
<hard_question>Of all pots that went into kilns which fired longer than Dune, what percentage came
out whole, rounded to a whole number?</hard_question>
<hard_answer>87%</hard_answer>

Now yours. Work the hard answer out step by step inside <think> </think>, then write exactly
these six blocks, in this order, and nothing after them:
<think>[your working, step by step]</think>
<content_type>[one of: data_chart, diagram, geometry, timeline, map, table, other]</content_type>
<caption>[the full description of the picture]</caption>
<easy_question>[your easy question here]</easy_question>
<easy_answer>[its answer]</easy_answer>
<hard_question>[your hard question here]</hard_question>
<hard_answer>[its answer]</hard_answer>
"""

CODER = """\
Write {language} code that draws the picture described here. A model that sees nothing but the
picture will be asked both questions.

Picture: {caption}

Easy question: {easy_question}
Answer: {easy_answer}

Hard question: {hard_question}
Answer: {hard_answer}

The picture
- Draw every element of the description, with its exact values, labels and colours, and nothing
  that contradicts it.
- Whoever looks carefully must be able to read the easy answer off the picture.
- Everything that the hard question needs must be visible, but its answer must not be written in
  the picture. Do not write the questions, the reasoning or any hint into the picture either.
- Readable at a glance: text of 14 pixels or more, dark on light, nothing overlapping or cut off
  at the edges, margins on all sides, a legend where colours carry meaning.
- A picture of one colour only counts as none, and so does one that is more than 100 times as
  long as wide.
"""

SVG_GUIDE = """
The code
- One complete SVG document: an <svg> element with xmlns="http://www.w3.org/2000/svg", width,
  height and a viewBox of that size. Neither side may be larger than 1024; about 800 by 600 is
  good. First a white rectangle over all of it.
- Plain elements only: rect, circle, ellipse, line, polyline, polygon, path, text, tspan, g, and
  defs with simple gradients or markers. Set fill, stroke and font-size as attributes,
  font-family="sans-serif", colours by name or #rrggbb.
- No scripts, no animation, no style sheets, no pictures inside the picture, no links, fonts or
  files from elsewhere: nothing is loaded.
- Do not use what would be drawn wrongly or not at all: foreignObject and HTML in it, filters,
  shadows, blend modes, vertical writing (use transform="rotate(-90 x y)"), computed lengths such
  as calc(), clip-path on anything but a rect, the CSS properties rotate, translate and scale,
  textLength, pathLength, small caps, emoji, letters that DejaVu Sans does not have.
- Work out all coordinates before you write. In text, write &lt; for < and &amp; for &. A comment
  must not contain two hyphens: -- inside it makes the whole document invalid.

End your reply with the code in one fenced block, complete, in this form:
```svg
<svg xmlns="http://www.w3.org/2000/svg" width="800" height="600" viewBox="0 0 800 600">
[the elements of your picture]
</svg>
```
"""

PYTHON_GUIDE = """
The code
- One complete Python script, run once from an empty folder. It may use Pillow, numpy, matplotlib
  and modules of the standard library that only compute, such as math and random. Nothing else is
  installed; numpy is version 2.3, matplotlib 3.10.
- No network, no windows, no reading of files, no other processes or threads, no input, no
  arguments: all of these are refused. It is stopped after 5 seconds, and at 1 GB of memory.
- What counts as the picture: the last one saved with Pillow's Image.save or matplotlib's
  savefig, under a plain name such as "chart.png"; if none was, the last one shown; then the open
  matplotlib figure; then a Pillow image in a variable named img or image. Make exactly one.
- Neither side may be larger than 2048 pixels; about 800 by 600 is good. White background. For a
  figure use figsize=(8, 6), dpi=100 and tight_layout.
- Write all values into the code, so that every run draws the same picture. Use the fonts that
  come with matplotlib, or Pillow's ImageFont.load_default(size): all text is set in DejaVu, which
  has no emoji.

End your reply with the code in one fenced block, complete, in this form:
```python
[the lines of your program]
```
"""

SOLVER = r"""{question}

Look closely at the picture: everything you need is in it. First think step by step inside
<think> </think>: say what you read off the picture, then calculate and check. Then give the final
answer inside \boxed{}, as short as possible, and write nothing after it. A number (with its unit if
it has one), a word or a label: \boxed{42}, \boxed{17.5 cm}, \boxed{3/4}, \boxed{blue}, \boxed{Q3}.

The whole reply has this form:
<think>[your reasoning, step by step]</think>
\boxed{[your answer]}
"""

PROMPTS = {
    "proposer": PROPOSER,
    "coder": {
        "svg": fill(CODER, language="SVG") + SVG_GUIDE,
        "python": fill(CODER, language="Python") + PYTHON_GUIDE,
    },
    "solver": SOLVER,
}
