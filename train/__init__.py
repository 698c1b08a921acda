"""Training one round on Megatron-Core: shards and a policy go in, a new policy in Hugging Face's layout comes out.

Importing this package is cheap; torch and Megatron are imported by `trainer`, which `launch` starts. Where to read:
`loss` is Eq. 8, `objective` what it becomes for the baselines, `data` and `weights` say which token gets which weight,
`step` is one optimizer step, `trainer` is the loop around it.
"""
