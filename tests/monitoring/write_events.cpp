// Writes the event file that tests/system/events.py reads with TensorBoard: steps FIRST to LAST of
// a run, and an evaluation and an image at LAST. The loss of a step is SCALE divided by the step.
//   write_events FOLDER FIRST LAST SCALE
#include <cstdint>
#include <iostream>
#include <string>

#include "data/pictures/image_file.h"
#include "monitoring/telemetry/event_file.h"

int main(int count, char** arguments) {
  if (count != 5) {
    std::cerr << "usage: write_events FOLDER FIRST LAST SCALE\n";
    return 2;
  }
  const std::int64_t first = std::stoll(arguments[2]), last = std::stoll(arguments[3]);
  const double scale = std::stod(arguments[4]);
  laterna::monitoring::EventFile events(arguments[1], first - 1);
  for (std::int64_t step = first; step <= last; ++step) {
    laterna::monitoring::StepRecord record;
    record.step = step;
    record.loss = scale / static_cast<double>(step);
    record.assignments = {{1, 3}};
    record.selecting_layers = {5};
    record.lateral = {{.layer = 5, .gamma = -0.5}};
    record.spike_rates = {{.layer = 5, .site = "z", .ratio = 0.25}};
    events.step(record);
  }
  events.evaluation({.step = last, .fid = scale * 10, .fid_low = scale * 9});
  const laterna::data::Image picture{1, 2, 3, {0, 50, 100, 150, 200, 250}};
  events.image("samples", last, laterna::data::encode_png(picture, "picture"), 2, 3, 1);
  events.flush();
  std::cerr << events.trouble();
  return events.trouble().empty() ? 0 : 1;
}
