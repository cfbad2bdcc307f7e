// gemma_cuda._emulator: loads compiled kernel libraries and launches them.
#include <dlfcn.h>
#include <link.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "emulator/launch.h"
#include "emulator/pending.h"
#include "emulator/shadow.h"
#include "emulator/sparse.h"
#include "emulator/variables.h"

namespace py = pybind11;
using emulator::Buffer;
using emulator::Dim3;
using emulator::Launch;
using emulator::Stream;
using Range = std::pair<std::uintptr_t, std::uintptr_t>;
using emulator::SparseMemory;

namespace {

// A kernel library, kept loaded for the life of the process: the address of its code may be in a report.
class Library {
 public:
  explicit Library(const std::string& path) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    kernel_ = static_cast<const emulator::Kernel*>(dlsym(handle, "emulator_kernel"));
    if (kernel_ == nullptr) throw std::runtime_error(path + ": not a kernel library");
    if (kernel_->abi != emulator::kAbi) throw std::runtime_error(path + ": built for another version of the emulator");
    struct link_map* map = nullptr;
    dlinfo(handle, RTLD_DI_LINKMAP, &map);
    begin_ = map->l_addr;
    dl_iterate_phdr(&Library::note_extent, this);
    variables_ = emulator::read_variables(path, begin_);
    layout_ = emulator::SharedLayout(variables_);
    for (const auto* kind : {&variables_.device, &variables_.constant})
      for (const emulator::Variable& variable : *kind)
        initial_.emplace(variable.name, std::string(memory_of(variable), variable.bytes));
  }

  // (kind, const, bytes, type) of each parameter; kind is one of "pointer", "signed", "unsigned", "float", "struct".
  std::vector<std::tuple<std::string, bool, unsigned, std::string>> parameters() const {
    static const char* const kinds[] = {"pointer", "signed", "unsigned", "float", "struct"};
    std::vector<std::tuple<std::string, bool, unsigned, std::string>> result;
    for (unsigned i = 0; i < kernel_->parameter_count; ++i) {
      const emulator::Parameter& parameter = kernel_->parameters[i];
      result.emplace_back(kinds[parameter.kind], parameter.is_const, parameter.size, parameter.type);
    }
    return result;
  }

  // (name, address, bytes, may be written) of each __device__ and __constant__ variable.
  std::vector<std::tuple<std::string, std::uintptr_t, std::size_t, bool>> variables() const {
    std::vector<std::tuple<std::string, std::uintptr_t, std::size_t, bool>> result;
    for (const auto& [name, place, bytes] : variables_.device) result.emplace_back(name, place, bytes, true);
    for (const auto& [name, place, bytes] : variables_.constant) result.emplace_back(name, place, bytes, false);
    return result;
  }
  py::bytes read(const std::string& name) const {
    const emulator::Variable& variable = find(name);
    return py::bytes(memory_of(variable), variable.bytes);
  }
  // Gives a variable a value; None: the one that it has in the source.
  void write(const std::string& name, const std::optional<std::string>& value) const {
    const emulator::Variable& variable = find(name);
    const std::string& bytes = value ? *value : initial_.at(name);
    if (bytes.size() == variable.bytes) std::memcpy(memory_of(variable), bytes.data(), bytes.size());
  }
  unsigned shared_bytes() const { return layout_.declared_bytes(); }
  const emulator::SharedLayout& layout() const { return layout_; }
  const std::vector<emulator::Variable>& constants() const { return variables_.constant; }
  const emulator::Kernel* kernel() const { return kernel_; }
  std::uintptr_t begin() const { return begin_; }
  std::uintptr_t end() const { return end_; }

 private:
  static int note_extent(struct dl_phdr_info* info, std::size_t, void* self_pointer) {
    auto* self = static_cast<Library*>(self_pointer);
    if (info->dlpi_addr != self->begin_) return 0;
    for (int i = 0; i < info->dlpi_phnum; ++i)
      if (info->dlpi_phdr[i].p_type == PT_LOAD)
        self->end_ = std::max<std::uintptr_t>(
            self->end_, info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
    return 1;
  }

  static char* memory_of(const emulator::Variable& variable) { return reinterpret_cast<char*>(variable.place); }
  const emulator::Variable& find(const std::string& name) const {
    for (const auto* kind : {&variables_.device, &variables_.constant})
      for (const emulator::Variable& variable : *kind)
        if (variable.name == name) return variable;
    throw py::key_error(name);
  }

  const emulator::Kernel* kernel_ = nullptr;
  std::uintptr_t begin_ = 0, end_ = 0;
  emulator::Variables variables_;
  emulator::SharedLayout layout_;
  std::map<std::string, std::string> initial_;
};

// Memory that Python hands to a launch: [begin, end), the argument that it stands for, what may be done with it.
struct BufferSpec {
  std::uintptr_t begin, end;
  int argument;
  bool writable, has_poison;
  unsigned element_bytes;
  std::uintptr_t written, written_from;  // bits of what kernels have written, and the address of the first; 0 without
};

// The per-buffer state of a checked launch.
class BufferState {
 public:
  void attach(Buffer& buffer) {
    touched_ = std::make_shared<emulator::Touched>(buffer.begin, buffer.end);
    buffer.touched = touched_.get();
    if (!buffer.writable) return;  // memory that nobody may write cannot race
    shadow_ = std::make_unique<emulator::GlobalShadow>();
    shadow_->map(buffer.begin, buffer.end - buffer.begin);
    buffer.shadow = shadow_.get();
  }
  void count(emulator::Counters& counters) const {
    if (touched_ == nullptr) return;
    counters.global_read_sectors += touched_->read.sectors();
    counters.global_write_sectors += touched_->written.sectors();
  }
  const std::shared_ptr<emulator::Touched>& touched() const { return touched_; }

 private:
  std::shared_ptr<emulator::Touched> touched_;
  std::unique_ptr<emulator::GlobalShadow> shadow_;
};

py::dict as_dict(const emulator::Counters& c) {
  py::dict result;
  result["blocks"] = c.blocks;
  result["threads"] = c.threads;
  result["barriers"] = c.barriers;
  result["warp_collectives"] = c.warp_collectives;
  result["mma"] = c.mma;
  result["async_copies"] = c.async_copies;
  result["global_read_bytes"] = c.global_read_bytes;
  result["global_write_bytes"] = c.global_write_bytes;
  result["global_read_sectors"] = c.global_read_sectors;
  result["global_write_sectors"] = c.global_write_sectors;
  result["global_requests"] = c.global_requests;
  result["global_full_requests"] = c.global_full_requests;
  result["global_scalar_requests"] = c.global_scalar_requests;
  result["global_request_sectors"] = c.global_request_sectors;
  result["shared_requests"] = c.shared_requests;
  result["shared_wavefronts"] = c.shared_wavefronts;
  result["shared_bank_conflicts"] = c.shared_bank_conflicts;
  return result;
}

py::object as_object(const emulator::Report* report, std::uintptr_t origin) {
  if (report == nullptr) return py::none();
  py::dict result;
  std::vector<std::uintptr_t> places;
  for (const std::uintptr_t place : report->places) places.push_back(place - origin);
  result["kind"] = report->kind;
  result["message"] = report->message;
  result["primitive"] = report->primitive;
  result["places"] = places;
  result["block"] = py::make_tuple(report->block.x, report->block.y, report->block.z);
  result["threads"] = report->threads;
  result["address"] = report->address;
  return result;
}

// How an Emulator runs its launches.
struct Options {
  bool checked;
  int schedule;
  std::uint64_t seed;
  unsigned workers;
  int mma;  // an emulator::MmaRounding
  int exp2_ulps;
  float tanh_factor;
  double rsqrt_factor;
  double reciprocal_factor;
  int library_sign;
};

using Sizes = std::tuple<unsigned, unsigned, unsigned>;
Dim3 as_dim(const Sizes& sizes) { return {std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes)}; }

void configure(Launch& launch, const Library& library, const Options& options) {
  launch.kernel = library.kernel();
  launch.code_begin = library.begin();
  launch.code_end = library.end();
  launch.shared_layout = &library.layout();
  launch.constants = &library.constants();
  launch.checked = options.checked;
  launch.schedule = static_cast<emulator::Schedule>(options.schedule);
  launch.seed = options.seed;
  launch.workers = options.workers;
  launch.mma = static_cast<emulator::MmaRounding>(options.mma);
  launch.exp2_ulps = options.exp2_ulps;
  launch.tanh_factor = options.tanh_factor;
  launch.rsqrt_factor = options.rsqrt_factor;
  launch.reciprocal_factor = options.reciprocal_factor;
  launch.library_sign = options.library_sign;
}

// The arguments' bytes, each aligned as any parameter may need.
class Arguments {
 public:
  explicit Arguments(const std::vector<py::bytes>& arguments) {
    for (const py::bytes& argument : arguments) {
      const auto text = static_cast<std::string_view>(argument);
      values_.emplace_back(text.size() / sizeof(std::max_align_t) + 1);
      std::memcpy(values_.back().data(), text.data(), text.size());
      pointers_.push_back(values_.back().data());
    }
  }
  const void* const* pointers() const { return pointers_.data(); }

 private:
  std::vector<std::vector<std::max_align_t>> values_;
  std::vector<const void*> pointers_;
};

void open_buffers(Launch& launch, const std::vector<BufferSpec>& specs, std::vector<BufferState>& states) {
  for (std::size_t i = 0; i < specs.size(); ++i) {
    Buffer buffer;
    buffer.begin = specs[i].begin;
    buffer.end = specs[i].end;
    buffer.argument = specs[i].argument;
    buffer.writable = specs[i].writable;
    buffer.has_poison = specs[i].has_poison;
    buffer.element_bytes = specs[i].element_bytes;
    if (launch.checked) states[i].attach(buffer);
    buffer.written = reinterpret_cast<std::atomic<std::uint64_t>*>(specs[i].written);
    buffer.written_from = specs[i].written_from;
    launch.buffers.push_back(buffer);
  }
}

// A pointer argument's memory: begin, end, whether its parameter is declared constant.
using ArgumentSpec = std::tuple<std::uintptr_t, std::uintptr_t, bool>;

// Lets the launch look out for those of its stream that may still run.
std::unique_ptr<emulator::Pending> look_out(Launch& launch, const Stream& stream,
                                            const std::vector<ArgumentSpec>& arguments) {
  auto pending = stream.overlap();
  if (pending == nullptr) return pending;
  for (const auto& [begin, end, is_constant] : arguments) {
    pending->arguments.push_back({begin, end, is_constant});
    if (!is_constant || !pending->may_write(begin, end)) continue;
    for (Buffer& buffer : launch.buffers) buffer.has_constant |= begin >= buffer.begin && begin < buffer.end;
  }
  launch.pending = pending.get();
  return pending;
}

// Notes what another library's kernel read and wrote, each as [begin, end).
void note_launch(Stream& stream, const std::string& name, const std::vector<Range>& reads,
                 const std::vector<Range>& writes) {
  emulator::TouchedMemory memory;
  for (const auto* ranges : {&reads, &writes}) {
    for (const auto& [begin, end] : *ranges) {
      auto touched = std::make_shared<emulator::Touched>(begin, end);
      (ranges == &reads ? touched->read : touched->written).mark(begin, end - begin);
      memory.push_back(std::move(touched));
    }
  }
  stream.add(name, std::move(memory), nullptr);
}

// Places in code are offsets into the library, as addr2line takes them.
py::dict outcome(const Launch& launch) {
  std::string printed;
  for (const auto& [number, text] : launch.printed) printed += text;
  py::list unlike_calls;
  for (const auto& [addresses, report] : launch.unlike_calls)
    unlike_calls.append(as_object(&report, launch.code_begin));
  py::dict result;
  result["counters"] = as_dict(launch.counters);
  result["report"] = as_object(launch.report.get(), launch.code_begin);
  result["printed"] = py::bytes(printed);
  result["unlike_calls"] = unlike_calls;
  return result;
}

py::dict launch(const Library& library, const Options& options, const Sizes& grid, const Sizes& block,
                unsigned shared_bytes, const std::vector<py::bytes>& arguments, const std::vector<BufferSpec>& buffers,
                Stream& stream, const std::string& name, bool overlap, const std::vector<ArgumentSpec>& ranges,
                std::optional<std::vector<std::uint64_t>> blocks) {
  const Arguments values(arguments);
  std::vector<BufferState> states(buffers.size());
  Launch launch;
  configure(launch, library, options);
  launch.arguments = values.pointers();
  launch.grid = as_dim(grid);
  launch.block = as_dim(block);
  launch.chosen = std::move(blocks);
  launch.shared_bytes = library.layout().bytes() + shared_bytes;
  open_buffers(launch, buffers, states);
  const auto pending = overlap && launch.checked ? look_out(launch, stream, ranges) : nullptr;
  bool completed = false;
  {
    const py::gil_scoped_release release;
    completed = emulator::run(launch, [] {
      const py::gil_scoped_acquire acquire;
      return PyErr_CheckSignals() == 0;
    });
  }
  if (!completed) {
    stream.drain();
    throw py::error_already_set();
  }
  emulator::TouchedMemory memory;
  for (const BufferState& state : states) {
    state.count(launch.counters);
    if (launch.checked) memory.push_back(state.touched());
  }
  if (launch.report != nullptr)
    stream.drain();  // a GPU runs nothing after a fault
  else if (launch.checked)
    stream.add(name, std::move(memory), pending.get());
  return outcome(launch);
}

}  // namespace

PYBIND11_MODULE(_emulator, module) {
  module.doc() = "The emulator's runtime: gemma_cuda.device.emulator is its Python face.";
  module.attr("ABI") = emulator::kAbi;
  py::class_<Library>(module, "Library")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def_property_readonly("parameters", &Library::parameters)
      .def_property_readonly("variables", &Library::variables)
      .def_property_readonly("shared_bytes", &Library::shared_bytes)
      .def("read", &Library::read, py::arg("name"))
      .def("write", &Library::write, py::arg("name"), py::arg("value"));
  py::class_<BufferSpec>(module, "Buffer")
      .def(py::init([](std::uintptr_t begin, std::uintptr_t end, int argument, bool writable, bool has_poison,
                       unsigned element_bytes, std::uintptr_t written, std::uintptr_t written_from) {
             return BufferSpec{begin, end, argument, writable, has_poison, element_bytes, written, written_from};
           }),
           py::kw_only(), py::arg("begin"), py::arg("end"), py::arg("argument"), py::arg("writable"),
           py::arg("has_poison"), py::arg("element_bytes"), py::arg("written") = 0, py::arg("written_from") = 0);
  py::class_<Options>(module, "Options")
      .def(py::init([](bool checked, int schedule, std::uint64_t seed, unsigned workers, int mma, int exp2_ulps,
                       float tanh_factor, double rsqrt_factor, double reciprocal_factor, int library_sign) {
             return Options{checked,   schedule,    seed,         workers,           mma,
                            exp2_ulps, tanh_factor, rsqrt_factor, reciprocal_factor, library_sign};
           }),
           py::kw_only(), py::arg("checked"), py::arg("schedule"), py::arg("seed"), py::arg("workers"), py::arg("mma"),
           py::arg("exp2_ulps"), py::arg("tanh_factor"), py::arg("rsqrt_factor"), py::arg("reciprocal_factor"),
           py::arg("library_sign"));
  py::class_<Stream>(module, "Stream")
      .def(py::init<>())
      .def("drain", &Stream::drain)
      .def("forget", &Stream::forget, py::arg("begin"), py::arg("end"))
      .def("note_launch", &note_launch, py::arg("name"), py::arg("reads"), py::arg("writes"));
  py::class_<SparseMemory>(module, "SparseMemory", py::buffer_protocol())
      .def(py::init<std::size_t, std::uint16_t>(), py::arg("bytes"), py::arg("pattern"))
      .def_buffer([](SparseMemory& memory) {
        return py::buffer_info(static_cast<std::uint8_t*>(memory.data()), static_cast<py::ssize_t>(memory.size()));
      });
  module.def("launch", &launch, py::arg("library"), py::arg("options"), py::kw_only(), py::arg("grid"),
             py::arg("block"), py::arg("shared_bytes"), py::arg("arguments"), py::arg("buffers"), py::arg("stream"),
             py::arg("name"), py::arg("overlap"), py::arg("ranges"), py::arg("blocks"));
}
