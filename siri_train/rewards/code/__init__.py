"""Programs as answers: their tests run in a sandbox, in the form of HumanEval and MBPP."""
