"""The operator: looks at RLJobs and their children, decides, acts. Level-triggered; a restart at any moment is invisible.

main        kopf: the RLJob stream, start and end of the process
watch       streams of children into the cache         cache       what was last seen, trimmed
workqueue   which job is looked at next                reconcile   one look: observe, decide, act, write status
decide      pure: the world in, actions and status out
client      what is asked of an API server             apiserver   a real one, over HTTP
progress    masters are asked how far they are         leader      one operator acts at a time
metrics     figures and probes
"""
