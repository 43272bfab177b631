// Traces of the shape of public traces of GPU clusters, from a seed.
//
// Published numbers (generator.cc holds them as tables, each with its source):
// - sizes: shares of jobs by GPUs in the cluster Saturn of Helios (Hu et al., SC 2021, figure 5a: the vectors of
//   job_cdf_gpunum.pdf in S-Lab-System-Group/HeliosArtifact): 68 % one GPU, 2.8 % two, 8.3 % four, 15.6 % eight, 5 %
//   more, up to 80 here
// - run times by size: quantiles of the Philly trace (Jeon et al., ATC 2019, figure 2, read off the picture in
//   msr-fiddle/philly-traces, analysis/Philly Trace Analysis.ipynb, to 0.5 % and 4 % of time), straight lines between
//   them on a logarithmic scale, up to the 10,000 min where the figure ends. Medians: 19 min for one GPU, 29 min for
//   2-4, 206 min for 5-8, 136 min for more
// - queues: the 11 virtual clusters of Philly with their numbers of nodes as weights (philly_vc.csv of HeliosArtifact)
// - 37.6 % of jobs fail or are cancelled on the way (GPU jobs of Helios, helios_cluster_summary.csv: 62.4 % complete)
// - limits are a few round values (Tsafrir 2010) above the planned time, by a factor that is uniform between 1 and 4
//   (Mu'alem and Feitelson 2001 model estimates as r (1 + uniform(0, f)))
//
// Assumed, not published: half of the jobs have a limit; queues' shares of the load differ from their weights by a
// log-normal factor of sigma 0.5; arrivals follow a day of +-50 %; a job that ends on the way does so at a uniform part
// of its plan.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "server/simulator/cluster.h"
#include "server/simulator/trace.h"

namespace longspan::simulator {

struct GeneratorOptions {
  uint64_t seed = 1;
  int64_t workers = 128;
  int64_t slots_per_worker = 8;
  int64_t racks = 8;
  absl::Duration duration = absl::Hours(14 * 24);
  double load = 0.9;         // slot-seconds asked for by slot-seconds there
  double limited = 0.5;      // share of jobs with a limit
  double high_priority = 0;  // share of jobs of priority 80 instead of 50
  double low_priority = 0;   // share of jobs of priority 20
  double elastic = 0;        // share of jobs of two and more slots that run with a half or a quarter too
  double required_gpu = 0;   // share of jobs that need the device of half of the workers
  int64_t backlog = 0;       // jobs beside these that are there at the beginning
};

struct GeneratedTrace {
  ClusterSpec cluster;
  std::vector<TraceJob> jobs;  // by submit time
};

// The same for the same options, on every machine.
GeneratedTrace GenerateTrace(const GeneratorOptions& options);

}  // namespace longspan::simulator
