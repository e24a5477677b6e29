"""What a run needs and the paper does not mention. Nothing here imports what lies above it.

reading   answers     a boxed answer; when two answers are equal; the vote
          replies     reasoning, the blocks of a proposal, code
          units       which units, currencies and percentages are the same
          writing     LaTeX, number words and signs in one way of writing
          choices     the letter of a multiple choice
          chat        the chat template around a prompt
drawing   sandbox     processes that are locked down and may be killed
          programs    a Python program, run in one of them; which picture counts
          cairo       an SVG, made safe and drawn
          cairo_draw  what cairo draws otherwise than a browser, put right
          svg_text    text in an SVG: fonts, anchors, lines
          svg_values  colours, lengths and styles in an SVG
training  cache       the KV cache, and attention to it
          flash       on CUDA alone: captured steps, memory, the engine that is kept
          packed      many replies in one sequence; log-probs without all logits
          lora        adapters, and a second network on the same weights
          parallel    torchrun: what each rank does, and FSDP
          networks    policy and actor, and where the roles start
          checkpoint  finding, reading and writing the folders of models
running   settings    every number of a run, presets, the command line
          run_folder  the files of a run, and going on with it
          screen      what a run says on the terminal
          hours       how long an iteration may take on a card
          machine     threads and memory of the computer
          figures     means, intervals, tables
"""
