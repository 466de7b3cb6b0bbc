-- Health of an RLJob for Argo CD: resource.customizations.health.rljob.dev_RLJob in the ConfigMap argocd-cm.
-- Reads what kstatus reads, so that Flux, `kubectl rljob` and Argo CD say the same.
local waiting = { status = "Progressing", message = "Waiting for the operator to look at this generation" }

local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return waiting
end

local found = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.status == "True" then
    found[condition.type] = condition.message or condition.reason or condition.type
  end
end

-- The first that holds. A failed job is also stalled, in the same words; one that has ended can have a spec that is refused since: order matters.
local order = {
  { "Stalled", "Degraded" },
  { "Failed", "Degraded" },
  { "Succeeded", "Healthy" },
  { "Suspended", "Suspended" },
  { "Reconciling", "Progressing" },
  { "Ready", "Healthy" },
}
for _, entry in ipairs(order) do
  local message = found[entry[1]]
  if message ~= nil then
    return { status = entry[2], message = message }
  end
end
return waiting
