"""The project's file of LAMBADA as a task of lm-eval, so that nothing has to be downloaded; FILE is its place."""

TASK = """task: lambada_local
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{context}}"
doc_to_target: "{{continuation}}"
metric_list: [{metric: acc}]
"""
