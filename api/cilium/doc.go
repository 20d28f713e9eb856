// Package cilium holds the shape of the cilium.io/v2 policy kinds, so that manifests written for them can be read
// unchanged: CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and CiliumCIDRGroup.
//
// It describes the public schema of those kinds, field for field, and says nothing about meaning: internal/kube
// translates the shape into the ordered model of internal/policy, and refuses there what the datapath cannot do yet. Fields
// that are refused are in the shape all the same, because a refusal should say why and not "unknown
// field". Where nothing is read of a value (status, secrets, groups of a cloud provider) the
// type is any.
package cilium
