// A CUDA device for a torch that was built without one: its memory is the CPU's, and so is whatever computes there.
//
// Each operation on such tensors is checked as CUDA's own kernels check theirs (all arguments on one device, generators too), shown to
// the CPU's kernel as CPU tensors on the same memory, and what comes out is a CUDA tensor again.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <unordered_map>
#include <unordered_set>

namespace {

using c10::IValue;
using Stack = torch::jit::Stack;
const c10::Device kDevice(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet kOurs(c10::DispatchKey::CUDA), kTheirs(c10::DispatchKey::CPU);

// Device, stream, memory, generators --------------------------------------------------------------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(kDevice); }
};

void release(void* storage) { delete static_cast<c10::Storage*>(storage); }

// the same memory under the name of another device; it lives as long as the longer of both
c10::DataPtr renamed(const c10::Storage& storage, c10::Device device) {
  return {storage.mutable_data(), new c10::Storage(storage), &release, device};
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    memory.unsafe_set_device(kDevice);
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override { return c10::GetCPUAllocator()->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator allocator;

struct GeneratorOfCPU final : c10::GeneratorImpl {  // the state that draws is a CPU generator's
  at::Generator inner;
  explicit GeneratorOfCPU(at::Generator inner) : c10::GeneratorImpl(kDevice, kOurs), inner(std::move(inner)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorOfCPU* clone_impl() const override { return new GeneratorOfCPU(inner.clone()); }
};

at::Generator new_generator() { return at::make_generator<GeneratorOfCPU>(at::make_generator<at::CPUGeneratorImpl>()); }

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator generator = new_generator();
    return generator;
  }
};

// Operations ----------------------------------------------------------------------------------------------------------------------

std::unordered_set<std::string> takes_scalars;  // operations that take tensors of the CPU without a dimension
std::unordered_set<std::string> takes_anything;  // and those that take any
const std::unordered_set<std::string> without_integers = {  // products that CUDA has for floating point alone
    "aten::mm.out", "aten::bmm.out", "aten::addmm.out", "aten::baddbmm.out", "aten::mv", "aten::addmv.out", "aten::dot"};

class Call {
 public:
  explicit Call(const c10::OperatorHandle& op) : name_(toString(op.operator_name())) {}

  // what the CPU's kernel is shown in place of an argument
  IValue shown(const IValue& value) {
    if (value.isTensor()) return value.toTensor().defined() ? IValue(shown(value.toTensor())) : value;
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) list.push_back(each.defined() ? shown(each) : each);
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& each : value.toOptionalTensorList())
        list.push_back(each && each->defined() ? std::optional<at::Tensor>(shown(*each)) : each);
      return list;
    }
    if (value.isGenerator() && value.toGenerator().defined()) {
      auto ours = dynamic_cast<GeneratorOfCPU*>(value.toGenerator().unsafeGetGeneratorImpl());
      TORCH_CHECK(ours, "Expected a 'cuda' device type for generator but found 'cpu' in ", name_);
      return ours->inner;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return IValue(c10::Device(c10::DeviceType::CPU));
    return value;
  }

  // what the caller gets in place of a result
  IValue returned(const IValue& value) {
    if (value.isTensor() && value.toTensor().defined()) return returned(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) list.push_back(each.defined() ? returned(each) : each);
      return list;
    }
    return value;
  }

  // arguments that were written to may have other sizes or memory now
  void settle() {
    for (auto& [theirs, ours] : tensors_) {
      auto storage = ours.storage();
      if (theirs.storage().data() != storage.data() || theirs.storage().nbytes() > storage.nbytes()) {
        storage.set_data_ptr_noswap(renamed(theirs.storage(), kDevice));
        storage.set_nbytes(theirs.storage().nbytes());
      }
      if (ours.sizes() != theirs.sizes() || ours.strides() != theirs.strides())
        ours.unsafeGetTensorImpl()->set_sizes_and_strides(theirs.sizes(), theirs.strides(), theirs.storage_offset());
    }
  }

  bool has_tensors() const { return !tensors_.empty(); }

  void check() const {
    for (auto& [theirs, ours] : tensors_)
      TORCH_CHECK(
          !without_integers.count(name_) || !c10::isIntegralType(ours.scalar_type(), true), name_, " not implemented for '",
          ours.scalar_type(), "' on CUDA");
    if (tensors_.empty() || takes_anything.count(name_)) return;
    const bool scalars = takes_scalars.count(name_);
    for (const at::Tensor& other : others_)
      TORCH_CHECK(
          scalars && other.dim() == 0,
          "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and ", other.device(),
          " (a tensor of sizes ", other.sizes(), "), in ", name_);
  }

 private:
  at::Tensor shown(const at::Tensor& tensor) {
    if (!tensor.is_cuda()) {
      others_.push_back(tensor);
      return tensor;
    }
    for (auto& [theirs, ours] : tensors_)
      if (ours.is_same(tensor)) return theirs;
    auto& storage = storages_[tensor.storage().unsafeGetStorageImpl()];
    if (!storage) {
      storage = c10::Storage(
          c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), renamed(tensor.storage(), c10::DeviceType::CPU),
          c10::GetCPUAllocator(), true);
      originals_.emplace(storage.unsafeGetStorageImpl(), tensor.storage());
    }
    tensors_.emplace_back(like(tensor, storage, kTheirs), tensor);
    return tensors_.back().first;
  }

  at::Tensor returned(const at::Tensor& tensor) {
    if (!tensor.is_cpu() || tensors_.empty()) return tensor;
    for (auto& [theirs, ours] : tensors_)
      if (theirs.is_same(tensor)) return ours;
    auto found = originals_.find(tensor.storage().unsafeGetStorageImpl());
    if (found != originals_.end()) return like(tensor, found->second, kOurs);
    c10::Storage storage(
        c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), renamed(tensor.storage(), kDevice), &allocator, true);
    return like(tensor, storage, kOurs);
  }

  static at::Tensor like(const at::Tensor& tensor, const c10::Storage& storage, c10::DispatchKeySet keys) {
    auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, tensor.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.is_conj()) made._set_conj(true);
    if (tensor.is_neg()) made._set_neg(true);
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
    return made;
  }

  std::string name_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;  // what is shown, whose it is
  std::vector<at::Tensor> others_;
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages_, originals_;
};

void on_cpu(const c10::OperatorHandle& op, Stack* stack) {
  Call call(op);
  const auto arguments = op.schema().arguments().size(), first = stack->size() - arguments;
  for (auto i = first; i < stack->size(); ++i) (*stack)[i] = call.shown((*stack)[i]);
  call.check();
  TORCH_INTERNAL_ASSERT(call.has_tensors(), op.schema(), " makes tensors of its own, which this stand-in does not know");
  op.redispatchBoxed(kTheirs, stack);
  call.settle();
  const auto results = op.schema().returns().size();
  for (auto i = stack->size() - results; i < stack->size(); ++i) (*stack)[i] = call.returned((*stack)[i]);
}

at::Tensor empty(
    c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(device->index() < 1, "invalid device ordinal");
  return at::detail::empty_generic(size, &allocator, kOurs, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device> device, std::optional<bool>) {
  TORCH_CHECK(device->index() < 1, "invalid device ordinal");
  return at::detail::empty_strided_generic(size, stride, &allocator, kOurs, c10::dtype_or_default(dtype));
}

struct NoMemory final : c10::Allocator {  // of tensors that are zero whatever is asked of them
  c10::DataPtr allocate(size_t) override { return {nullptr, nullptr, &c10::detail::deleteNothing, kDevice}; }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::detail::deleteNothing; }
  void copy_data(void*, const void*, std::size_t) const override {}
};

at::Tensor zeros(
    c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>, std::optional<c10::Device>,
    std::optional<bool>) {
  static NoMemory none;
  return at::detail::empty_generic(
      size, &none, kOurs | c10::DispatchKeySet(c10::DispatchKey::ZeroTensor), c10::dtype_or_default(dtype), std::nullopt);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

// products summed in float32 of bfloat16, which the CPU's kernels do not have
at::Tensor addmm_into(
    const at::Tensor& self, const at::Tensor& a, const at::Tensor& b, c10::ScalarType out, const c10::Scalar& beta,
    const c10::Scalar& alpha) {
  TORCH_CHECK(out == a.scalar_type() || (out == c10::kFloat && c10::isReducedFloatingType(a.scalar_type())), "out_dtype ", out);
  TORCH_CHECK(self.scalar_type() == out || self.scalar_type() == a.scalar_type(), "self must match out_dtype or mat1");
  return at::addmm(self.to(out), a.to(out), b.to(out), beta, alpha);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage) { return at::native::set_(self, std::move(storage)); }

void rules(const std::vector<std::string>& scalars, const std::vector<std::string>& anything) {
  takes_scalars = {scalars.begin(), scalars.end()};
  takes_anything = {anything.begin(), anything.end()};
}

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
}
namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &allocator);

TORCH_LIBRARY(cuda_stand_in, m) {
  m.def("rules(str[] scalars, str[] anything) -> ()", [](std::vector<std::string> scalars, std::vector<std::string> anything) {
    rules(scalars, anything);
  });
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_efficientzerotensor", &zeros);
  m.impl("addmm.dtype", &addmm_into);
  m.impl("view", &view);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}
